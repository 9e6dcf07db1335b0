package limits

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/size"
)

const (
	// MinRate and MaxRate bound a limit in bytes/s. The least is 1 Mbit/s, of which 16
	// peers get as much as the swarm takes for a slow link and not for a peer that has
	// stalled; nobody has a link of the most.
	MinRate, MaxRate = 125_000, 1_000_000_000_000
	// maxFile bounds a file of limits, in bytes.
	maxFile = 64 << 10
)

// Direction says which bytes a limit is for.
type Direction string

// The directions: to peers, from peers, from source buckets, and into the regional
// bucket.
const (
	Upload   Direction = "upload"
	Download Direction = "download"
	Source   Direction = "source"
	Landing  Direction = "landing"
)

// Limits are those of one daemon, for all builds together.
type Limits struct {
	// Upload and Download are for what goes to peers and comes from them, the protocol's
	// own bytes too. Source is for what is read of builds from the buckets that they come
	// from, Landing for the parts that go to the regional bucket; nil at a seeder.
	Upload, Download, Source, Landing *Limiter

	mu sync.Mutex // of changes
}

// New has no limits. lands says whether there are landings.
func New(lands bool) *Limits {
	l := &Limits{Upload: newLimiter(), Download: newLimiter(), Source: newLimiter()}
	if lands {
		l.Landing = newLimiter()
	}
	return l
}

// Directions are those that the daemon has, in the order in which they are shown.
func (l *Limits) Directions() []Direction {
	d := []Direction{Upload, Download, Source}
	if l.Landing != nil {
		d = append(d, Landing)
	}
	return d
}

// Of is the limiter of a direction; nil where the daemon has none.
func (l *Limits) Of(d Direction) *Limiter {
	return map[Direction]*Limiter{Upload: l.Upload, Download: l.Download, Source: l.Source, Landing: l.Landing}[d]
}

// Rates are the limits as they are now.
func (l *Limits) Rates() api.Limits {
	rates := api.Limits{UploadRate: l.Upload.Rate(), DownloadRate: l.Download.Rate(), SourceRate: l.Source.Rate()}
	if l.Landing != nil {
		rate := l.Landing.Rate()
		rates.LandingRate = &rate
	}
	return rates
}

// LogValue shows them in a log.
func (l *Limits) LogValue() slog.Value {
	var attrs []slog.Attr
	for _, d := range l.Directions() {
		attrs = append(attrs, slog.Int64(string(d), l.Of(d).Rate()))
	}
	return slog.GroupValue(attrs...)
}

// Change sets what a change names, all of it or, on error, nothing. Whoever waits for a
// limit goes on by the new one.
func (l *Limits) Change(c api.LimitsChange) error {
	if err := Check(c); err != nil {
		return err
	}
	if c.LandingRate != nil && l.Landing == nil {
		return errors.New("landingRate: a seeder lands nothing")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, of := range []struct {
		limiter *Limiter
		rate    *api.Rate
	}{{l.Upload, c.UploadRate}, {l.Download, c.DownloadRate}, {l.Source, c.SourceRate}, {l.Landing, c.LandingRate}} {
		if of.rate != nil {
			of.limiter.set(int64(*of.rate))
		}
	}
	return nil
}

// Check reports a rate that cannot be set.
func Check(c api.LimitsChange) error {
	for _, of := range []struct {
		name string
		rate *api.Rate
	}{{"uploadRate", c.UploadRate}, {"downloadRate", c.DownloadRate}, {"sourceRate", c.SourceRate}, {"landingRate", c.LandingRate}} {
		if of.rate == nil {
			continue
		}
		if err := CheckRate(int64(*of.rate)); err != nil {
			return fmt.Errorf("%s: %w", of.name, err)
		}
	}
	return nil
}

// CheckRate reports whether a limit of so many bytes/s cannot be set.
func CheckRate(rate int64) error {
	if rate != 0 && (rate < MinRate || rate > MaxRate) {
		return fmt.Errorf("%d bytes/s, expected 0 for no limit, or %d (1Mbit) to %d (1TB)", rate, MinRate, MaxRate)
	}
	return nil
}

// Over is a change that sets what either names, and of what both do, what this one says.
func Over(c, below api.LimitsChange) api.LimitsChange {
	return api.LimitsChange{
		UploadRate:   cmp.Or(c.UploadRate, below.UploadRate),
		DownloadRate: cmp.Or(c.DownloadRate, below.DownloadRate),
		SourceRate:   cmp.Or(c.SourceRate, below.SourceRate),
		LandingRate:  cmp.Or(c.LandingRate, below.LandingRate),
	}
}

// ReadFile reads a change from a file: one JSON object, of the fields of POST /limits.
func ReadFile(name string) (api.LimitsChange, error) {
	var c api.LimitsChange
	f, err := os.Open(name)
	if err != nil {
		return c, fmt.Errorf("limits: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	switch {
	case err != nil:
		return c, fmt.Errorf("limits: %w", err)
	case len(b) > maxFile:
		return c, fmt.Errorf("limits: %s is over %d bytes", name, maxFile)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	err = d.Decode(&c)
	if err == nil {
		if _, rest := d.Token(); !errors.Is(rest, io.EOF) {
			err = errors.New("it goes on after the JSON value")
		}
	}
	if err == nil {
		err = Check(c)
	}
	if err != nil {
		return api.LimitsChange{}, fmt.Errorf("limits: %s is not an object such as {\"uploadRate\": \"50MB\"}: %w", name, err)
	}
	return c, nil
}

// Rate reads a limit as people give it, such as 200MB or 1Gbit; 0 is no limit.
func Rate(s string) (*api.Rate, error) {
	v, err := size.ParseRate(s)
	if err == nil {
		err = CheckRate(v)
	}
	if err != nil {
		return nil, err
	}
	r := api.Rate(v)
	return &r, nil
}
