package clustertest

import (
	"slices"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
)

// sendEvery is how often a body gives one more part: some times within the half minute
// that a build without progress may keep its turn for.
const sendEvery = 5 * time.Second

// A build that waits for the rest of its upload makes room for another one at once, where
// an agent works on one at a time: its parts come often enough that it never lacks progress.
func TestUploadMakesRoom(t *testing.T) {
	log := &lines{}
	c := Start(t, cloud, Options{Regions: 1, MaxActive: 1, Log: log})
	slow, quick := content(1, 13*part), content(2, 2*part)
	g := c.upload("slow.zip", len(slow))
	sent := part + 1
	g.send(slow[:sent])
	e := g.landed(part)
	c.Put("quick.bin", quick, nil)
	id := c.Deploy("quick.bin").ExecutionID
	next := time.Now().Add(sendEvery)
	c.Until("the quick build has landed", func() bool {
		if time.Now().After(next) && sent+part < len(slow) {
			g.send(slow[sent : sent+part])
			sent, next = sent+part, time.Now().Add(sendEvery)
		}
		landed, err := c.Seeder.Execution(t.Context(), id)
		return err == nil && landed.Status == "COMPLETED"
	})
	if b := c.build(c.Agents[0], "slow.zip"); b == nil || b.State == api.StateLanded || b.State == api.StateFailed || b.Error != "" {
		t.Errorf("the slow one: %+v", b)
	}
	gave := log.of("waiting for another turn: there was no progress, and other builds wait")
	if len(gave) == 0 || gave[0]["executionId"] != e.ExecutionID {
		t.Errorf("its turn was given up: %v", gave)
	}
	g.send(slow[sent:])
	if err := g.ends(); err != nil {
		t.Fatal(err)
	}
	c.Await(e.ExecutionID, "COMPLETED")
	c.Holds("slow.zip", slow)
	c.Holds("quick.bin", quick)
	for _, message := range []string{"destination failed", "execution is stuck, trying again", "build not landed yet"} {
		if said := log.of(message); len(said) > 0 {
			t.Errorf("said: %v", said)
		}
	}
}

// When the seeder goes for good in the middle of an upload, the agent keeps what it has,
// says what it waits for, and fails nothing. A seeder that comes back on the same data ends
// that upload, and the client's next one lands.
func TestUploadWithTheSeederGone(t *testing.T) {
	const patience = 2 * time.Second
	log := &lines{}
	c := Start(t, cloud, Options{Regions: 1, FallbackAfter: patience, Log: log})
	want := content(1, 4*part)
	g := c.upload("build.zip", len(want))
	g.send(want[:part+1])
	first := g.landed(part).ExecutionID
	c.StopSeeder()
	if err := g.ends(); err == nil {
		t.Error("the upload has succeeded")
	}
	uploads := c.openUploads()
	c.Until("the agent is alone", func() bool {
		s, err := c.Agents[0].AgentStatus(t.Context())
		return err == nil && !slices.ContainsFunc(s.Members, func(m api.Member) bool { return m.Role == "seeder" && m.State == "alive" })
	})
	alone := time.Now()
	waits := func() bool {
		b := c.build(c.Agents[0], "build.zip")
		return b != nil && b.ExecutionID == first && b.Waiting && b.LandedBytes == part && b.Error == "" && b.SourceBytes == 0
	}
	c.Until("it says that it waits, when it would have lost its patience with its peers", func() bool {
		return waits() && time.Since(alone) > 2*patience
	})
	if now := c.openUploads(); len(now) != 2 || !slices.Equal(now, uploads) { // the source's and the region's
		t.Errorf("uploads were %v, and are %v", uploads, now)
	}
	if r := c.Record("build.zip"); r.ExecutionID != "" || r.Upload == nil || r.Upload.ExecutionID != first {
		t.Errorf("the table has %+v", r)
	}
	for _, message := range []string{
		"destination failed", "build not landed yet", "stopped",
		"no peer has what is missing, reading it from the source bucket", "no peer has the build, reading it from the source bucket",
	} {
		if said := log.of(message); len(said) > 0 {
			t.Errorf("said: %v", said)
		}
	}
	c.StartSeeder()
	again := c.upload("build.zip", len(want))
	again.send(want)
	if err := again.ends(); err != nil {
		t.Fatal(err)
	}
	e := c.Await(again.answer.ExecutionID, "COMPLETED")
	if e.ExecutionID == first {
		t.Error("it is the upload that was broken off")
	}
	c.Holds("build.zip", want)
	c.Until("nothing is left of the first", func() bool { return len(c.openUploads()) == 0 && c.Record("build.zip").Upload == nil })
}
