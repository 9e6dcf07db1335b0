package api

import "time"

// States of a deployment. The last three are ends.
const (
	DeploymentGate   = "waiting for the gate" // no host switches before the build is everywhere
	DeploymentWave   = "wave"                 // hosts of a wave switch
	DeploymentBaking = "baking"               // a wave has switched, and has to stay healthy for a while
	DeploymentPaused = "paused"
	DeploymentBack   = "going back" // hosts switch to the stable build
	DeploymentDone   = "done"
	// DeploymentStopped: hosts stay as they are. DeploymentWentBack: all run the stable build.
	DeploymentStopped  = "stopped"
	DeploymentWentBack = "went back"
)

// States of a host of a service. Waiting lacks the build, ready holds it.
const (
	HostWaiting   = "waiting"
	HostReady     = "ready"
	HostSwitching = "switching"
	HostHealthy   = "healthy"
	HostFailed    = "failed"
	HostAbsent    = "absent" // not seen of late
	HostSick      = "sick"   // unhealthy before it was told to switch
)

// HostStates are the states of a host, in the order in which they are shown.
func HostStates() []string {
	return []string{HostWaiting, HostReady, HostSwitching, HostHealthy, HostFailed, HostAbsent, HostSick}
}

// Gates of a deployment: which regions must have a build before hosts switch.
const (
	GateAll    = "all"    // every region of the deployment
	GateRegion = "region" // the host's own
	GateNone   = "none"
)

// Services are all services, in order of name.
type Services struct {
	Services []Service `json:"services"`
	// Loading: the seeder is still reading the table, and the list is not whole.
	Loading bool `json:"loading,omitempty"`
}

// Service is what a group of machines is to run, and what they run.
type Service struct {
	Service string `json:"service"`
	// Version is that of the goal; it only grows. Issued is when it was made.
	Version int64     `json:"version"`
	Issued  time.Time `json:"issued"`
	By      string    `json:"by,omitempty"`
	// Target is the build that hosts switch to, Stable the last one that a deployment has
	// completed with; nil while there is none.
	Target  *ServiceBuild   `json:"target,omitempty"`
	Stable  *ServiceBuild   `json:"stable,omitempty"`
	Hosts   HostCounts      `json:"hosts"`
	Regions []ServiceRegion `json:"regions"`
	// Held are hosts that stay with what they run.
	Held []string `json:"held,omitempty"`
	// WithoutTable is set while the newest goal was sent and is not in the table.
	WithoutTable bool `json:"withoutTable,omitempty"`
	// Deployment is the newest; nil while there was none.
	Deployment *Deployment `json:"deployment,omitempty"`
	// Failures are the newest failures, grouped by reason, the most frequent first.
	Failures []FailureGroup `json:"failures,omitempty"`
	// Error is what keeps the seeder from going on with the service, such as a table that
	// cannot be written.
	Error string `json:"error,omitempty"`
}

// ServiceBuild is one build of a service.
type ServiceBuild struct {
	Key          string `json:"key"`
	SourceBucket string `json:"sourceBucket"`
	ExecutionID  string `json:"executionId"`
	Size         int64  `json:"size"` // bytes
	// SHA256 is S3's composite over the parts; empty while it is not known.
	SHA256 string `json:"sha256,omitempty"`
}

// ServiceRegion is a service in one region.
type ServiceRegion struct {
	Region string `json:"region"`
	// Open: the gate is, hosts may switch. Skipped: others do not wait for this region.
	Open    bool `json:"open"`
	Skipped bool `json:"skipped,omitempty"`
	// Share is the part of the hosts, from 0 to 1, whose turn it is.
	Share float64 `json:"share"`
	// Roster is how many hosts there were when the wave began.
	Roster int        `json:"roster"`
	Hosts  HostCounts `json:"hosts"`
	// CountedAt is when the agents said so last; absent while none has, and the counts
	// are unknown.
	CountedAt *time.Time `json:"countedAt,omitempty"`
	// Zones are the largest zones of the region, in order of name; absent where hosts name
	// none.
	Zones []ServiceZone `json:"zones,omitempty"`
}

// ServiceZone is a service in one zone of a region.
type ServiceZone struct {
	Zone  string     `json:"zone"` // empty for hosts that name none
	Hosts HostCounts `json:"hosts"`
}

// HostCounts are how many hosts are in which state. Target is how many run the target.
type HostCounts struct {
	Total     int `json:"total"`
	Waiting   int `json:"waiting"`
	Ready     int `json:"ready"`
	Switching int `json:"switching"`
	Healthy   int `json:"healthy"`
	Failed    int `json:"failed"`
	Absent    int `json:"absent"`
	Sick      int `json:"sick"`
	Target    int `json:"target"`
	// Stable is how many run the stable build of the newest deployment, or hold it whole: they
	// go back without fetching anything.
	Stable int `json:"stable"`
}

// Add adds the hosts of another region.
func (c *HostCounts) Add(more HostCounts) {
	c.Total += more.Total
	c.Waiting += more.Waiting
	c.Ready += more.Ready
	c.Switching += more.Switching
	c.Healthy += more.Healthy
	c.Failed += more.Failed
	c.Absent += more.Absent
	c.Sick += more.Sick
	c.Target += more.Target
	c.Stable += more.Stable
}

// Of is how many hosts are in a state.
func (c HostCounts) Of(state string) int {
	switch state {
	case HostWaiting:
		return c.Waiting
	case HostReady:
		return c.Ready
	case HostSwitching:
		return c.Switching
	case HostHealthy:
		return c.Healthy
	case HostFailed:
		return c.Failed
	case HostAbsent:
		return c.Absent
	case HostSick:
		return c.Sick
	}
	return 0
}

// FailureGroup is how often hosts have failed for one reason.
type FailureGroup struct {
	Phase string `json:"phase"`
	Error string `json:"error"`
	Hosts int    `json:"hosts"`
	// Example is one of the hosts, Output its hook's last lines.
	Example string `json:"example"`
	Output  string `json:"output,omitempty"`
}

// Policy is how a deployment goes. Shares are "10%" or a number of hosts, times "2m".
type Policy struct {
	// Waves are the shares of a region's hosts that switch one after the other.
	Waves []string `json:"waves,omitempty"`
	// Bake is how long a wave has to be healthy before the next.
	Bake string `json:"bake,omitempty"`
	// MaxFailed is the share of failed hosts beyond which it stops.
	MaxFailed string `json:"maxFailed,omitempty"`
	// MaxUnavailable is the share of a region's and zone's hosts that switch at a time.
	MaxUnavailable string `json:"maxUnavailable,omitempty"`
	// Gate is one of the constants of that name.
	Gate string `json:"gate,omitempty"`
	// GateTimeout stops a deployment whose gate does not open; empty for never.
	GateTimeout string `json:"gateTimeout,omitempty"`
	// WaveCheck is asked before each wave; empty for nobody.
	WaveCheck string `json:"waveCheck,omitempty"`
	// AutoRollback has it go back to the stable build where it would stop.
	AutoRollback bool `json:"autoRollback,omitempty"`
}

// Kinds of a deployment.
const (
	KindDeploy   = "deploy"
	KindRollback = "rollback"
)

// Deployment is one change of what a service runs.
type Deployment struct {
	DeploymentID string `json:"deploymentId"` // ULID
	Service      string `json:"service"`
	Kind         string `json:"kind"`
	State        string `json:"state"`
	// Reason is why it waits, is paused, stopped or went back; empty where all is well.
	Reason string `json:"reason,omitempty"`
	// Target is what it brings; nil for a roll-back to nothing. From was stable before.
	Target  *ServiceBuild `json:"target,omitempty"`
	From    *ServiceBuild `json:"from,omitempty"`
	Regions []string      `json:"regions"`
	// WaitsFor are the regions that keep the gate closed.
	WaitsFor []string `json:"waitsFor,omitempty"`
	Policy   Policy   `json:"policy"`
	// Wave is which of the policy's waves is open, from 1; 0 before the first.
	Wave      int        `json:"wave"`
	By        string     `json:"by,omitempty"`
	StartedAt time.Time  `json:"startedAt"`
	WaveAt    *time.Time `json:"waveAt,omitempty"` // when that wave was opened
	EndedAt   *time.Time `json:"endedAt,omitempty"`
	// Hosts are as they were at the end, of a deployment that has ended; else as they are.
	Hosts HostCounts `json:"hosts"`
}

// Ended reports whether nothing more will happen by itself.
func (d *Deployment) Ended() bool {
	switch d.State {
	case DeploymentDone, DeploymentStopped, DeploymentWentBack:
		return true
	}
	return false
}

// Deployments are those of a service, newest first.
type Deployments struct {
	Deployments []Deployment `json:"deployments"`
}

// ServiceDeployRequest asks for a deployment. What the policy does not say is by default.
type ServiceDeployRequest struct {
	Policy
	// Key names the build; SourceBucket is the seeder's global bucket where it is empty.
	Key          string `json:"key"`
	SourceBucket string `json:"sourceBucket,omitempty"`
	// DryRun only says what would be done.
	DryRun bool `json:"dryRun,omitempty"`
	// WithoutTable has its goals sent before they are in the table: for when that is away.
	WithoutTable bool `json:"withoutTable,omitempty"`
}

// ServiceDeployAnswer is the deployment; with DryRun one that was not begun.
type ServiceDeployAnswer struct {
	Deployment
	DryRun bool `json:"dryRun,omitempty"`
	// Plan is how many hosts of each region switch with which wave, by what is known now.
	Plan []WavePlan `json:"plan,omitempty"`
}

// WavePlan is one wave in one region.
type WavePlan struct {
	Wave   int    `json:"wave"`
	Share  string `json:"share"`
	Region string `json:"region"`
	// Hosts are all that run the target after it.
	Hosts int `json:"hosts"`
}

// Commands to a service, beside a deployment.
const (
	CommandPause    = "pause"
	CommandResume   = "resume"
	CommandAbort    = "abort"
	CommandRollback = "rollback"
	CommandSkip     = "skip"
	CommandHold     = "hold"
	CommandRelease  = "release"
)

// ServiceCommandRequest says more of a command.
type ServiceCommandRequest struct {
	// Region is the one to skip.
	Region string `json:"region,omitempty"`
	// Now lifts the limit of hosts that switch at a time, of a roll-back.
	Now bool `json:"now,omitempty"`
	// DryRun only says what a roll-back would do.
	DryRun bool `json:"dryRun,omitempty"`
	// Hosts are those to hold or to release.
	Hosts []string `json:"hosts,omitempty"`
	// WithoutTable has a roll-back sent before it is in the table: for when that is away.
	WithoutTable bool `json:"withoutTable,omitempty"`
}

// ServiceCommandAnswer is the service after a command; of a roll-back that was only asked
// about, as it is.
type ServiceCommandAnswer struct {
	Service
	DryRun bool `json:"dryRun,omitempty"`
	// Back is what a roll-back means in each region, by what was known before it.
	Back []BackPlan `json:"back,omitempty"`
}

// BackPlan is what going back means in one region.
type BackPlan struct {
	Region string `json:"region"`
	// Hosts are all of the service, Holding those of them that run the stable build or hold it
	// whole, Fetching those that have to fetch it first.
	Hosts    int `json:"hosts"`
	Holding  int `json:"holding"`
	Fetching int `json:"fetching"`
	// Unknown: no agent has counted them of late.
	Unknown bool `json:"unknown,omitempty"`
}

// RecallRequest names builds that are to run nowhere, or may again.
type RecallRequest struct {
	// Builds are keys, executionIds, or composite SHA-256.
	Builds []string `json:"builds"`
	// SourceBucket has the keys; the seeder's global bucket where it is empty.
	SourceBucket string `json:"sourceBucket,omitempty"`
	Undo         bool   `json:"undo,omitempty"`
}

// Recalls are the builds that are to run nowhere.
type Recalls struct {
	// Version only grows; 0 before the first recall.
	Version  int64           `json:"version"`
	Recalled []RecalledBuild `json:"recalled"`
}

// RecalledBuild is one of them.
type RecalledBuild struct {
	SHA256 string `json:"sha256"` // S3's composite over the parts
	// Key and ExecutionID are of the execution by which it was named; empty where it was named
	// by its SHA-256.
	Key         string    `json:"key,omitempty"`
	ExecutionID string    `json:"executionId,omitempty"`
	By          string    `json:"by,omitempty"` // who has recalled it
	At          time.Time `json:"at"`
}

// HostViews are hosts of a service, in order of region and name.
type HostViews struct {
	Hosts []HostView `json:"hosts"`
	// All is how many there are in the states asked for; more than Hosts where only some
	// are known by name or fit an answer.
	All int `json:"all"`
	// Next is REGION/HOST, the last of Hosts, after which there are more; empty at the end.
	Next string `json:"next,omitempty"`
	// Unanswered are regions with agents that have not said anything, or do not name all of
	// their hosts.
	Unanswered []string `json:"unanswered,omitempty"`
}

// HostsLogged says which hosts were written into the table of hosts, by request.
type HostsLogged struct {
	DeploymentID string `json:"deploymentId"`
	// Hosts is how many in all, Regions how many of each region, in order of name.
	Hosts   int            `json:"hosts"`
	Regions []RegionLogged `json:"regions"`
	// Unanswered are regions with agents that did not answer, or did not name all of their
	// hosts.
	Unanswered []string `json:"unanswered,omitempty"`
}

// RegionLogged is how many hosts of a region were written.
type RegionLogged struct {
	Region string `json:"region"`
	Hosts  int    `json:"hosts"`
}

// HostView is one host of a service.
type HostView struct {
	Host   string `json:"host"`
	Region string `json:"region"`
	Zone   string `json:"zone,omitempty"`
	// Labels are what it says of itself, Program its program's version.
	Labels  map[string]string `json:"labels,omitempty"`
	Program string            `json:"program,omitempty"`
	State   string            `json:"state"`
	// Held: it stays with what it runs.
	Held bool `json:"held,omitempty"`
	// Running is the executionId of the build that it runs; empty for none. Key is that
	// build's, where it is known.
	Running string `json:"running,omitempty"`
	Key     string `json:"key,omitempty"`
	// Version is that of the goal that it follows.
	Version int64 `json:"version"`
	// Phase, Error and Output are of what failed last: the last lines of the hook.
	Phase  string     `json:"phase,omitempty"`
	Error  string     `json:"error,omitempty"`
	Output string     `json:"output,omitempty"`
	SeenAt *time.Time `json:"seenAt,omitempty"`
}
