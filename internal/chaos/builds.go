//go:build linux

package chaos

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"math/rand/v2"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/manifest"
)

// Version is one content of a key.
type Version struct {
	Key, SHA256, ETag string
	// Build is how it is cut, and what its segments are.
	Build *manifest.Build
	Size  int
	seed  uint64
	// foreign says that it is stored by somebody else, without Put's metadata.
	foreign bool
}

// Content makes the bytes again.
func (v *Version) Content() []byte {
	var seed [32]byte
	for i := range 8 {
		seed[i] = byte(v.seed >> (8 * i))
	}
	b := make([]byte, v.Size)
	_, _ = rand.NewChaCha8(seed).Read(b) // never fails
	return b
}

// history is what happened to a key in the global bucket.
type history struct {
	versions map[string]*Version // by SHA-256
	now      *Version            // nil when it was deleted
	// loose says that it may end as FAILED too: it was cancelled, or deleted
	// at a moment when it may not have been pulled yet.
	loose bool
	// uploaded says that it was sent through the seeder: which content it has now, if any,
	// the global bucket says. answered: an upload was answered with success.
	uploaded, answered bool
}

func (w *World) history(key string) *history {
	h, ok := w.builds[key]
	if !ok {
		h = &history{versions: make(map[string]*Version)}
		w.builds[key] = h
	}
	return h
}

// Expect says that somebody else is about to store new content of so many bytes
// under a key.
func (w *World) Expect(key string, size int) *Version {
	w.mu.Lock()
	defer w.mu.Unlock()
	v := &Version{Key: key, Size: size, seed: w.rng.Uint64(), foreign: true}
	w.expect(v)
	return v
}

// expect is called with the lock held, before anybody can see the version.
func (w *World) expect(v *Version) []byte {
	content := v.Content()
	w.register(v, content)
	w.history(v.Key).now = v
	return content
}

// register has a version be one that may be seen.
func (w *World) register(v *Version, content []byte) {
	sum := sha256.Sum256(content)
	v.SHA256 = hex.EncodeToString(sum[:])
	v.Build = described(content)
	w.history(v.Key).versions[v.SHA256] = v
}

// described is what a seeder finds out about a content.
func described(content []byte) *manifest.Build {
	layout, err := manifest.NewLayout(manifest.Ramp, int64(len(content)))
	if err != nil {
		panic(err) // no test has a build that is larger than S3's
	}
	h := manifest.NewHasher(layout)
	_, _ = h.Write(content) // never fails
	b := manifest.NewBuild(layout)
	for i := range layout.NumSegments() {
		_ = b.Know(i, h.Segment(i)) // never fails
	}
	return b
}

// Put stores a new content of so many bytes under a key of the global bucket. With
// a key that ends with .zip the seeder finds it by itself.
func (w *World) Put(key string, size int) *Version {
	w.t().Helper()
	w.mu.Lock()
	v := &Version{Key: key, Size: size, seed: w.rng.Uint64()}
	w.mu.Unlock()
	w.PutAgain(v)
	return v
}

// PutAgain stores a version once more, in place of what is there.
func (w *World) PutAgain(v *Version) {
	w.t().Helper()
	w.mu.Lock()
	content := w.expect(v)
	w.mu.Unlock()
	out, err := w.S3.PutObject(context.Background(), &s3.PutObjectInput{
		Bucket: &w.Global, Key: &v.Key, Body: bytes.NewReader(content),
		ContentType: aws.String("application/zip"), Metadata: map[string]string{"build-host": "chaos"},
	})
	if err != nil {
		w.t().Fatal(err)
	}
	v.ETag = aws.ToString(out.ETag)
}

// Delete removes a key from the global bucket.
func (w *World) Delete(key string) {
	w.t().Helper()
	w.mu.Lock()
	h := w.history(key)
	h.now, h.loose = nil, true
	w.mu.Unlock()
	if _, err := w.S3.DeleteObject(context.Background(), &s3.DeleteObjectInput{Bucket: &w.Global, Key: &key}); err != nil {
		w.t().Fatal(err)
	}
}

// Loosen allows a key to end as FAILED.
func (w *World) Loosen(key string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.history(key).loose = true
}

// Cancel asks the seeder to stop a key's execution; it may not answer.
func (w *World) Cancel(key string) error {
	w.Loosen(key)
	e, err := w.Seeder.ByKey(context.Background(), key)
	if err == nil {
		_, err = w.Seeder.Cancel(context.Background(), e.ExecutionID)
	}
	return err
}

// Record is the item of a key; nil when there is none.
func (w *World) Record(key string) *ledger.Record {
	r, err := w.Ledger.Get(context.Background(), ledger.Key{FileKey: key, SourceBucket: w.Global})
	if err != nil {
		return nil
	}
	return r
}

// Begun waits until the version's execution is in the table.
func (w *World) Begun(v *Version) *ledger.Record {
	w.t().Helper()
	var r *ledger.Record
	w.Until("an execution of "+v.Key, func() bool {
		r = w.Record(v.Key)
		return r != nil && r.SourceETag == v.ETag
	})
	return r
}

// Completed waits until a version has arrived everywhere.
func (w *World) Completed(v *Version) *ledger.Record {
	w.t().Helper()
	return w.Ended(v, ledger.Completed)
}

// Ended waits until the version's execution has a status.
func (w *World) Ended(v *Version, status ledger.Status) *ledger.Record {
	w.t().Helper()
	var r *ledger.Record
	w.Until(v.Key+" is "+string(status), func() bool {
		r = w.Record(v.Key)
		return r != nil && r.SourceETag == v.ETag && r.Status == status
	})
	return r
}

// Deploy asks the seeder for an execution until it agrees.
func (w *World) Deploy(key string, to ...string) *api.DeployAnswer {
	w.t().Helper()
	var answer *api.DeployAnswer
	w.Until("an answer to POST /deploy of "+key, func() bool {
		var err error
		answer, err = w.Seeder.Deploy(context.Background(), api.DeployRequest{SourceBucket: w.Global, SourceKey: key, DestinationBuckets: to})
		return err == nil
	})
	return answer
}

// try asks the seeder for an execution, once.
func (w *World) try(key string) error {
	_, err := w.Seeder.Deploy(context.Background(), api.DeployRequest{SourceBucket: w.Global, SourceKey: key})
	return err
}

// seconds since a moment, for messages.
func seconds(since time.Time) float64 {
	return time.Since(since).Round(100 * time.Millisecond).Seconds()
}
