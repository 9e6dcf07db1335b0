package goal

import (
	"fmt"
	"slices"
	"time"

	"github.com/landfall-dist/landfall/internal/announce"
)

const (
	// MaxRecalled bounds the builds that are recalled at a time: what is not taken back may
	// not push out what still must not run, so that one more is refused.
	MaxRecalled = 300
	// Recalls is the name under which the list of recalled builds travels and is kept, beside
	// the services: no service has a dot first.
	Recalls = ".recalls"

	// RecallBeats is the name of the beat of that list.
	RecallBeats = ".recalls-beat"

	recallKind     = "landfall-recall-v1"
	recallBeatKind = "landfall-recall-beat-v1"
	// recallFile is the list's on a shelf, recallBeatFile its beat's.
	recallFile, recallBeatFile = "recalls", "recalls-beat"
)

// Recall is the list of builds that are not to run anywhere: no host starts one, and no agent
// hands one to hosts. A later version replaces an earlier one, so that leaving a build out
// takes its recall back.
type Recall struct {
	// Version only grows: NextVersion.
	Version int64 `json:"version"`
	// SourceBucket is one with whose every object the key that signs must be trusted. Digests
	// count wherever builds come from.
	SourceBucket string `json:"sourceBucket"`
	// SHA256 are the builds' composites, as in Build, in order.
	SHA256 []string  `json:"sha256"`
	By     string    `json:"by,omitempty"` // the operator who has changed it last
	Issued time.Time `json:"issued"`
}

// RecallBeat says which list is the newest, so that whoever has an old one knows. A Beat does
// not: who does not know of lists would refuse it.
type RecallBeat struct {
	Time    time.Time `json:"time"`
	Version int64     `json:"version"` // 0 for that there is no list
}

func (b *RecallBeat) check() error {
	if b.Version < 0 {
		return fmt.Errorf("%w: recalls of version %d", ErrInvalid, b.Version)
	}
	return nil
}

// Has reports whether a build is recalled.
func (r *Recall) Has(sha256 string) bool {
	if r == nil {
		return false
	}
	_, found := slices.BinarySearch(r.SHA256, sha256)
	return found
}

func (r *Recall) check() error {
	switch {
	case r.Version < 1:
		return fmt.Errorf("%w: recalls of version %d", ErrInvalid, r.Version)
	case len(r.SHA256) > MaxRecalled:
		return fmt.Errorf("%w: %d builds are recalled, at most %d", ErrInvalid, len(r.SHA256), MaxRecalled)
	case len(r.By) > maxBy:
		return fmt.Errorf("%w: operator's name of %d bytes", ErrInvalid, len(r.By))
	}
	if err := announce.CheckBucketName(r.SourceBucket); err != nil {
		return err
	}
	for i, sum := range r.SHA256 {
		if !IsComposite(sum) {
			return fmt.Errorf("%w: recalled build %.80q: expected base64, a dash and the number of parts", ErrInvalid, sum)
		}
		if i > 0 && r.SHA256[i-1] >= sum {
			return fmt.Errorf("%w: the recalled builds are not in order", ErrInvalid)
		}
	}
	return nil
}
