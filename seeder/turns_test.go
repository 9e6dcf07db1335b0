package seeder

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/ledger"
)

// hangingFor answers as next, but for requests that name a text: these hang.
type hangingFor struct {
	text  string
	asked chan struct{}
	next  dynamodb.HTTPClient
}

func (h hangingFor) Do(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	if bytes.Contains(body, []byte(h.text)) {
		h.asked <- struct{}{}
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	return h.next.Do(r)
}

// A table that does not answer about one key keeps no other from being published,
// and whoever waits for that key can go.
func TestPublishBesideATableThatHangs(t *testing.T) {
	asked := make(chan struct{}, 1)
	client := dynamodb.NewFromConfig(cloud.AWS, func(o *dynamodb.Options) {
		o.HTTPClient = hangingFor{"hanging.zip", asked, o.HTTPClient}
	})
	logger := slog.New(slog.DiscardHandler)
	s := &Seeder{cfg: Config{Ledger: ledger.New(client, cloud.Table(t)), Logger: logger}, index: newIndex(), metrics: newMetrics(nil)}
	publish := func(ctx context.Context, key string) error {
		_, err := s.accept(ctx, "global-builds", &bucket.Object{Key: key, ETag: `"1"`, Size: 1}, []string{"region-a-builds"}, false)
		return err
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- publish(ctx, "hanging.zip") }()
	<-asked
	go func() { ended <- publish(ctx, "hanging.zip") }() // waits for the first
	for range 2 {
		if err := publish(t.Context(), "build.zip"); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	for range 2 {
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
	}
	if n := s.turns.Busy(); n != 0 {
		t.Errorf("%d turns are not given back", n)
	}
}
