// Package call is what members ask of each other over landfall-call/1: HTTP/1.1 on a
// connection of TLS whose both ends have shown who they are. It carries what a member
// says of itself, progress, and the renewal of certificates. What is in a message, and
// who may send which, is for who serves it to say.
package call

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/landfall-dist/landfall/internal/identity"
)

const (
	// timeout bounds one call, and what a connection does before and between calls.
	timeout = 10 * time.Second
	// idle is how long a connection without a call is kept: progress comes once a second.
	idle = time.Minute
	// MaxHello bounds what a member says of itself, in bytes: 100 regions with ten
	// buckets each.
	MaxHello = 128 << 10
	// MaxMessage bounds a message, in bytes: that of the membership's packets.
	MaxMessage = 1 << 10
	// MaxFleet bounds a message about the fleet, in bytes: the hashes of 100,000 hosts.
	MaxFleet = 512 << 10
	// maxRequest and maxCerts bound a request for a certificate and the answer, in bytes.
	maxRequest, maxCerts = 8 << 10, 64 << 10
	// maxReason bounds the reason of a refusal that is read, in bytes.
	maxReason = 1 << 10
)

// Hello is what a member says of itself beside its meta, which has 512 bytes.
type Hello struct {
	// Table, ArrivalsTable, Key and Trusts are as the membership's meta has them without TLS.
	Table         string   `json:"table,omitempty"`
	ArrivalsTable string   `json:"rows,omitempty"`
	Key           string   `json:"key,omitempty"`
	Trusts        []string `json:"trusts,omitempty"`
	// Serves are the buckets that each region's agents serve, of a seeder alone.
	Serves Serves `json:"serves,omitempty"`
	// Denied is a digest of the certificates that it denies, of a seeder alone; empty for
	// none. Client.Denied asks for the list.
	Denied string `json:"denied,omitempty"`
}

// Serves are the buckets that each region's agents serve, by region.
type Serves map[string][]string

// Has reports whether a region's agents serve a bucket.
func (s Serves) Has(region, bucket string) bool {
	for _, b := range s[region] {
		if b == bucket {
			return true
		}
	}
	return false
}

const (
	// maxRegions and maxBuckets bound a Serves: as many as an execution has
	// destinations, many times over.
	maxRegions, maxBuckets = 512, 64
	maxTrusts, maxText     = 64, 256
)

// Check reports what of a hello is out of its bounds.
func (h *Hello) Check() error {
	if len(h.Table) > maxText || len(h.ArrivalsTable) > maxText || len(h.Key) > maxText || len(h.Denied) > maxText || len(h.Trusts) > maxTrusts {
		return errors.New("table, key or trusted keys too long")
	}
	for _, t := range h.Trusts {
		if len(t) > maxText {
			return errors.New("the name of a trusted key is too long")
		}
	}
	return h.Serves.Check()
}

// Check reports what is wrong with regions and buckets.
func (s Serves) Check() error {
	if len(s) > maxRegions {
		return fmt.Errorf("%d regions, at most %d", len(s), maxRegions)
	}
	for region, buckets := range s {
		if err := (identity.ID{Cluster: "x", Kind: identity.Agent, Region: region, Name: "x"}).Check(); err != nil {
			return err
		}
		if len(buckets) > maxBuckets {
			return fmt.Errorf("region %s: %d buckets, at most %d", region, len(buckets), maxBuckets)
		}
		for _, b := range buckets {
			if b == "" || len(b) > maxText {
				return fmt.Errorf("region %s: bucket %.80q", region, b)
			}
		}
	}
	return nil
}

// readAll reads at most so many bytes, more are an error.
func readAll(r io.Reader, most int) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, int64(most)+1))
	if err == nil && len(b) > most {
		err = fmt.Errorf("more than %d bytes", most)
	}
	return b, err
}

func parseHello(b []byte) (Hello, error) {
	var h Hello
	if err := json.Unmarshal(b, &h); err != nil {
		return h, err
	}
	return h, h.Check()
}
