package landing

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/ledger"
)

// goesUp has an execution stand beside the key's, whose build is still going up.
func (s *site) goesUp(t *testing.T) string {
	t.Helper()
	id, beside, err := s.ledger.NewUpload(t.Context(), s.key, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	u := ledger.Upload{ExecutionID: id, UploadID: "upload", Size: s.m.Size, Destinations: []string{s.bucket.Name()}, StartTime: time.Now()}
	if _, err := s.ledger.BeginUpload(t.Context(), s.key, u, beside); err != nil {
		t.Fatal(err)
	}
	return id
}

// takesKey is the end of its upload.
func (s *site) takesKey(t *testing.T, id string) {
	t.Helper()
	begun, err := s.ledger.Begin(t.Context(), ledger.Start{
		Key: s.key, SourceETag: "of the upload", Size: s.m.Size, Destinations: []string{s.bucket.Name()}, Now: time.Now(), Upload: id, Sealing: true,
	})
	if err != nil || !begun.Adopted {
		t.Fatalf("%+v, %v", begun, err)
	}
}

// While a build goes up to its source bucket its parts land, and nothing else: what has the
// key lands and records beside it, and leaves its upload alone. When it has taken the key it
// is completed.
func TestWhileTheBuildGoesUp(t *testing.T) {
	s := newSite(t, several)
	old := s.begin(t, "etag")
	id := s.goesUp(t)
	j := s.job(id, false)
	j.Build = s.unsealed()
	completed := s.completions()
	sent := make(chan struct{})
	var once sync.Once
	j.Progress = func(bytes int64) {
		if bytes == int64(several) {
			once.Do(func() { close(sent) })
		}
	}
	for i := range j.Build.NumSegments() {
		s.know(t, j, i)
	}
	var result ledger.Result
	done := make(chan error, 1)
	go func() {
		var err error
		result, err = j.Run(t.Context())
		done <- err
	}()
	<-sent
	before := *s
	before.m, before.content = s.m, s.content
	if _, err := before.job(old, true).Run(t.Context()); err != nil {
		t.Fatalf("the execution that has the key: %v", err)
	}
	<-completed
	record, err := s.ledger.Get(t.Context(), s.key)
	if err != nil || record.Status != ledger.Completed || record.Upload == nil {
		t.Fatalf("%+v, %v", record, err)
	}
	s.assertUploads(t, record.Upload.Landings[s.bucket.Name()].UploadID)
	if !quiet(completed) {
		t.Error("completed before it has the key")
	}
	s.takesKey(t, id)
	j.Build.Seal(s.m.SHA256Hex())
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	s.assertUploads(t)
	s.assertRecorded(t, result)
}

// One that is broken off ends, and its upload with it.
func TestBrokenOffWhileItGoesUp(t *testing.T) {
	s := newSite(t, several)
	old := s.begin(t, "etag")
	id := s.goesUp(t)
	j := s.job(id, false)
	j.Build = s.unsealed()
	ctx, end := context.WithCancelCause(t.Context())
	j.Progress = func(bytes int64) {
		if bytes > 0 {
			if err := s.ledger.EndUpload(t.Context(), s.key, id); err != nil {
				t.Error(err)
			}
			end(ErrEnded)
		}
	}
	s.know(t, j, 0)
	if _, err := j.Run(ctx); !errors.Is(err, context.Canceled) && !errors.Is(err, ErrEnded) {
		t.Errorf("ended with %v", err)
	}
	s.assertUploads(t)
	j.Progress = nil
	if _, err := j.Run(t.Context()); !errors.Is(err, ErrSuperseded) {
		t.Errorf("once more: %v", err)
	}
	s.assertUploads(t)
	s.assertNoObject(t)
	if record, err := s.ledger.Get(t.Context(), s.key); err != nil || record.ExecutionID != old || record.Upload != nil {
		t.Errorf("%+v, %v", record, err)
	}
}
