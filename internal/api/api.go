// Package api holds the JSON that seeder and agent speak over HTTP. Servers,
// commands and seeder/client share these types, so they cannot drift apart.
package api

import (
	"fmt"
	"time"
)

// States of a destination and of a build at an agent.
const (
	StateQueued      = "queued"      // waiting: for the pull, for a slot, for disk
	StateUnserved    = "unserved"    // no living member serves the bucket, or none that trusts this seeder
	StateDownloading = "downloading" // from the swarm
	StateLanding     = "landing"     // all pieces verified, parts still going up
	StateLanded      = "landed"      // complete, verified and recorded
	StateFailed      = "failed"
	StateCancelled   = "cancelled" // by request
)

// Distrust is in the error of a destination whose agents refuse what this seeder
// signs.
const Distrust = "does not trust this seeder's key"

// OtherVersion is in the error of a destination whose agents understand other documents
// than this seeder's.
const OtherVersion = "does not understand this seeder's announcements"

// Phases of an execution at the seeder.
const (
	PhaseUploading    = "uploading" // through the seeder, into the global bucket
	PhaseQueued       = "queued"
	PhasePulling      = "pulling"
	PhaseDistributing = "distributing"
	PhaseEnded        = "ended"
)

// Priorities of an execution. A high one goes before all that are not, wherever builds wait
// for each other.
const (
	PriorityNormal = "normal" // the empty one, too
	PriorityHigh   = "high"
)

// IsHigh reads a priority; the error names those that there are.
func IsHigh(priority string) (bool, error) {
	switch priority {
	case "", PriorityNormal:
		return false, nil
	case PriorityHigh:
		return true, nil
	}
	return false, fmt.Errorf("priority is %.40q, expected %s or %s", priority, PriorityNormal, PriorityHigh)
}

// Priority is what IsHigh reads; a normal one is not said.
func Priority(high bool) string {
	if high {
		return PriorityHigh
	}
	return ""
}

// Execution is one distribution of one build. Sizes are in bytes, rates in
// bytes/s; times that have not come yet are absent.
type Execution struct {
	ExecutionID  string    `json:"executionId"`
	Status       string    `json:"status"`
	Phase        string    `json:"phase"`
	Key          string    `json:"key"`
	SourceBucket string    `json:"sourceBucket"`
	Size         int64     `json:"size"`
	Priority     string    `json:"priority,omitempty"` // absent: normal
	SourceETag   string    `json:"sourceEtag"`
	SHA256       string    `json:"sha256,omitempty"`
	InfoHash     string    `json:"infohash,omitempty"`
	PulledBytes  int64     `json:"pulledBytes"`
	SentBytes    int64     `json:"sentBytes"` // by the seeder to peers since it started
	StartTime    time.Time `json:"startTime"`
	// TakenUpAt is when this seeder began to carry it, or began again; the next three
	// are of since then.
	TakenUpAt    *time.Time    `json:"takenUpAt,omitempty"`
	PullBeganAt  *time.Time    `json:"pullBeganAt,omitempty"`
	PulledAt     *time.Time    `json:"pulledAt,omitempty"`
	AnnouncedAt  *time.Time    `json:"announcedAt,omitempty"`
	CompletedAt  *time.Time    `json:"completedAt,omitempty"`
	Error        string        `json:"error,omitempty"`
	RetryAt      *time.Time    `json:"retryAt,omitempty"` // when the seeder tries again what failed
	Destinations []Destination `json:"destinations"`
}

// Ended reports whether nothing more will happen by itself.
func (e *Execution) Ended() bool { return e.Status != "IN_PROGRESS" }

// Destination is one bucket of an execution.
type Destination struct {
	Bucket        string  `json:"bucket"`
	Region        string  `json:"region,omitempty"`
	State         string  `json:"state"`
	VerifiedBytes int64   `json:"verifiedBytes"`
	LandedBytes   int64   `json:"landedBytes"`
	Rate          int64   `json:"rate"`
	Seconds       float64 `json:"seconds,omitempty"`
	Agent         string  `json:"agent,omitempty"`
	ETag          string  `json:"etag,omitempty"`
	Error         string  `json:"error,omitempty"`
	// RetryAt is when the agent tries again what failed.
	RetryAt   *time.Time `json:"retryAt,omitempty"`
	ArrivedAt *time.Time `json:"arrivedAt,omitempty"`
	// Took is what the agent said last; nil when it said nothing since the seeder
	// started.
	Took *Took `json:"took,omitempty"`
}

// Took is where an agent's time went, in seconds: waiting for a turn, downloading
// with the swarm, from the whole download to the complete object, and until that was
// recorded.
type Took struct {
	Queued    float64 `json:"queued"`
	Swarm     float64 `json:"swarm"`
	Landing   float64 `json:"landing"`
	Recording float64 `json:"recording"`
}

// SwarmView is who has what of a build, and from whom, as the seeder sees it.
type SwarmView struct {
	// Pieces is their number; 0 when the build is not in the seeder's cache.
	Pieces      int   `json:"pieces"`
	PieceLength int64 `json:"pieceLength"` // bytes
	// Seeder and each holder's Fill cut the build into at most 400 equal stretches
	// of whole pieces, with a digit for each: 0 has nothing of it, 9 all.
	Seeder  string   `json:"seeder"`
	Holders []Holder `json:"holders"`
	// Links are what the agents told of who sent to them, AllLinks their number: the
	// page is told of the strongest only. Traffic is the sum of all for each member.
	Links    []Link    `json:"links"`
	AllLinks int       `json:"allLinks"`
	Traffic  []Traffic `json:"traffic"`
}

// Traffic is what one member has sent and received of a build, in bytes, and at which
// rates now, in bytes/s.
type Traffic struct {
	Member   string `json:"member"`
	Sent     int64  `json:"sent"`
	Received int64  `json:"received"`
	UpRate   int64  `json:"upRate"`
	DownRate int64  `json:"downRate"`
}

// Holder is what one agent has.
type Holder struct {
	Agent  string `json:"agent"`
	Region string `json:"region"`
	Bucket string `json:"bucket"`
	Fill   string `json:"fill"`
}

// Link is what one member has sent to another, in bytes of the build, and at which
// rate now, in bytes/s.
type Link struct {
	From  string `json:"from"`
	To    string `json:"to"`
	Bytes int64  `json:"bytes"`
	Rate  int64  `json:"rate"`
}

// Executions is a page of the list, newest first.
type Executions struct {
	Executions []Execution `json:"executions"`
	// Next is the executionId to give as ?after= for the next page; absent on
	// the last.
	Next string `json:"next,omitempty"`
	// Loading: the seeder is still reading the table, and the list is not whole.
	Loading bool `json:"loading,omitempty"`
	// SkippedItems are those of the table that are no executions; the seeder's log
	// names them.
	SkippedItems int64 `json:"skippedItems,omitempty"`
	// Unserved are the seeder's own destinations where no agent would take a build.
	Unserved []Unserved `json:"unserved,omitempty"`
}

// Unserved is a destination that no living agent serves, or none that trusts the
// seeder's key.
type Unserved struct {
	Bucket string `json:"bucket"`
	// Error is why the agents there do not count; absent where there is none.
	Error string `json:"error,omitempty"`
}

// DeployRequest asks for an execution. No destinations means the seeder's own.
type DeployRequest struct {
	SourceBucket       string   `json:"sourceBucket"`
	SourceKey          string   `json:"sourceKey"`
	DestinationBuckets []string `json:"destinationBuckets"`
	// Force takes destinations that are neither the seeder's own nor served by a
	// living agent: the build waits for one.
	Force bool `json:"force,omitempty"`
	// Priority is one of the constants of that name; empty for normal.
	Priority string `json:"priority,omitempty"`
}

// DeployAnswer is the execution, and how it came about.
type DeployAnswer struct {
	Execution
	// Joined: a running execution of the same bytes covers the destinations. It becomes a
	// high one, when that is asked for.
	Joined bool `json:"joined,omitempty"`
	// Superseded is the execution that this one replaces.
	Superseded string `json:"superseded,omitempty"`
	// Inherited are destinations that the superseded one had not finished.
	Inherited []string `json:"inherited,omitempty"`
}

// BuildRequest asks the seeder to fetch what was built of a commit.
type BuildRequest struct {
	Commit string `json:"commit"`
	// Priority is that of a DeployRequest.
	Priority string `json:"priority,omitempty"`
}

// BuildAnswer says where the build now is.
type BuildAnswer struct {
	Commit      string `json:"commit"`
	FileName    string `json:"fileName"`
	FileSize    int64  `json:"fileSize"`
	S3Location  string `json:"s3Location"`
	ETag        string `json:"etag"`
	ExecutionID string `json:"executionId"`
	Status      string `json:"status"`
}

// UploadAnswer says what PUT /uploads stored.
type UploadAnswer struct {
	Bucket string `json:"bucket"`
	Key    string `json:"key"`
	Size   int64  `json:"size"`
	ETag   string `json:"etag"`
	// ExecutionID is the execution that distributes it; empty where nobody has asked for one.
	ExecutionID string `json:"executionId,omitempty"`
}

// Changes are the newest requests that were to change something, the last first.
type Changes struct {
	Changes []Change `json:"changes"`
}

// Change is a request that was to change something, as the record of changes has it.
type Change struct {
	Time time.Time `json:"time"`
	// Operator is who asked, by the token; empty where nobody was known by it, or none is
	// asked for.
	Operator string `json:"operator,omitempty"`
	Role     string `json:"role,omitempty"`
	// Action is the method and the path, without what it is about: POST /deploy.
	Action string `json:"action"`
	// Path is the whole path, without a query.
	Path string `json:"path"`
	// About says what the request is about, where the path does not: key, executionId.
	About map[string]string `json:"about,omitempty"`
	// From is the address that the request came from.
	From string `json:"from"`
	// Status is that of the answer, 0 without one; Error its reason where that is no success.
	Status int    `json:"status"`
	Error  string `json:"error,omitempty"`
	// Unrecorded is how many more requests of those whom nobody knows were refused since the
	// change before.
	Unrecorded int64 `json:"unrecorded,omitempty"`
}

// Error is the body of every answer that is not a success.
type Error struct {
	Error string `json:"error"`
	// Successor is the execution that replaced the one asked for (410).
	Successor string `json:"successor,omitempty"`
}

// StatusError is an answer that is not a success, as a client has it.
type StatusError struct {
	Code int // HTTP status
	Body Error
}

func (e *StatusError) Error() string {
	if e.Body.Successor != "" {
		return fmt.Sprintf("%s (now: %s)", e.Body.Error, e.Body.Successor)
	}
	return e.Body.Error
}

// AgentStatus is the agent's GET /status.
type AgentStatus struct {
	Node    string `json:"node"`
	Region  string `json:"region"`
	Bucket  string `json:"bucket"`
	Version string `json:"version"`
	// NotReady is why no build can come or land here; empty when the agent is ready.
	NotReady string   `json:"notReady,omitempty"`
	Members  []Member `json:"members"`
	Builds   []Build  `json:"builds"`
	// BadPeers are left alone now, the newest first.
	BadPeers []BadPeer `json:"badPeers"`
	Cache    Cache     `json:"cache"`
	Limits   Limits    `json:"limits"`
	// Fleet is nil where no hosts are served.
	Fleet *AgentFleet `json:"fleet,omitempty"`
	// TLS is nil where none is spoken with other members.
	TLS *TLS `json:"tls,omitempty"`
}

// TLS is how a member speaks it with the others.
type TLS struct {
	Mode            string    `json:"mode"` // prefer or require
	Identity        string    `json:"identity"`
	CertificateEnds time.Time `json:"certificateEnds"`
}

// Cache is what an agent keeps on its disk, in bytes.
type Cache struct {
	Bytes   int64        `json:"bytes"` // of all builds, whole or not
	Limit   int64        `json:"limit"` // above which finished builds go
	Free    int64        `json:"free"`  // on the disk
	Entries []CacheEntry `json:"entries"`
}

// CacheEntry is one segment of a build in the cache. A pinned one is worked on and stays.
type CacheEntry struct {
	InfoHash      string    `json:"infohash"`
	Size          int64     `json:"size"`
	VerifiedBytes int64     `json:"verifiedBytes"`
	Pinned        bool      `json:"pinned"`
	UsedAt        time.Time `json:"usedAt"`
}

// BadPeer is one that is neither dialled nor accepted until then, for what it did:
// "corrupt" sent wrong pieces, "stalled" took requests and sent next to nothing,
// "garbage" does not speak the protocol. Without Until only its IP address is
// known, which is not refused.
type BadPeer struct {
	Name   string     `json:"name"` // the member's, or its address
	Addr   string     `json:"addr"`
	Region string     `json:"region,omitempty"`
	Reason string     `json:"reason"`
	Since  time.Time  `json:"since"`
	Until  *time.Time `json:"until,omitempty"`
	Times  int        `json:"times"` // that it was found to be bad, of late
}

// Member is one process in the cluster.
type Member struct {
	Name   string `json:"name"`
	Role   string `json:"role"`
	Region string `json:"region"`
	Addr   string `json:"addr"`
	State  string `json:"state"`
}

// Build is one build at an agent.
type Build struct {
	Key             string     `json:"key"`
	SourceBucket    string     `json:"sourceBucket"`
	ExecutionID     string     `json:"executionId"`
	InfoHash        string     `json:"infohash"`
	Size            int64      `json:"size"`
	Priority        string     `json:"priority,omitempty"` // absent: normal
	State           string     `json:"state"`
	VerifiedBytes   int64      `json:"verifiedBytes"`
	LandedBytes     int64      `json:"landedBytes"`
	Recording       bool       `json:"recording,omitempty"` // complete in the bucket, not yet in the table
	Waiting         bool       `json:"waiting,omitempty"`   // for the source: all that the seeder has announced is here
	DownloadedBytes int64      `json:"downloadedBytes"`
	UploadedBytes   int64      `json:"uploadedBytes"`
	SourceBytes     int64      `json:"sourceBytes"` // read from the source bucket, for want of peers
	DownRate        int64      `json:"downRate"`
	UpRate          int64      `json:"upRate"`
	Peers           []Peer     `json:"peers"`
	LandedAt        *time.Time `json:"landedAt,omitempty"`
	Error           string     `json:"error,omitempty"`
	RetryAt         *time.Time `json:"retryAt,omitempty"` // when what failed is tried again
}

// Peer is one connection of a build's swarm.
type Peer struct {
	Name            string `json:"name"` // the member's, or its address
	Region          string `json:"region,omitempty"`
	Role            string `json:"role,omitempty"`
	Addr            string `json:"addr"`
	Pieces          int    `json:"pieces"` // that it holds
	DownloadedBytes int64  `json:"downloadedBytes"`
	UploadedBytes   int64  `json:"uploadedBytes"`
	DownRate        int64  `json:"downRate"`
}
