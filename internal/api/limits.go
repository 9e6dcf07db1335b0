package api

import (
	"encoding/json"
	"fmt"

	"github.com/landfall-dist/landfall/internal/size"
)

// Limits are how fast bytes may pass at a daemon, over all builds, in bytes/s; 0 is no
// limit. Upload and download are the peers' traffic, source the reads from the buckets
// that builds come from, landing the parts that go to the regional bucket.
type Limits struct {
	UploadRate   int64 `json:"uploadRate"`
	DownloadRate int64 `json:"downloadRate"`
	SourceRate   int64 `json:"sourceRate"`
	// LandingRate is absent at a seeder.
	LandingRate *int64 `json:"landingRate,omitempty"`
}

// LimitsChange sets the limits that it names.
type LimitsChange struct {
	UploadRate   *Rate `json:"uploadRate,omitempty"`
	DownloadRate *Rate `json:"downloadRate,omitempty"`
	SourceRate   *Rate `json:"sourceRate,omitempty"`
	LandingRate  *Rate `json:"landingRate,omitempty"`
}

// Rate is a number of bytes/s. JSON may have it as a number, or as text with a unit:
// "200MB", "1Gbit".
type Rate int64

// UnmarshalJSON reads either form.
func (r *Rate) UnmarshalJSON(b []byte) error {
	var text string
	if err := json.Unmarshal(b, &text); err == nil {
		v, err := size.ParseRate(text)
		*r = Rate(v)
		return err
	}
	var v int64
	if err := json.Unmarshal(b, &v); err != nil {
		return fmt.Errorf("%s is not a rate: expected bytes/s as a number, or as text such as \"200MB\"", b)
	}
	*r = Rate(v)
	return nil
}
