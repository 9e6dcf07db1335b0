package commandtest

import (
	"os"
	"regexp"
	"syscall"

	"github.com/landfall-dist/landfall/seeder/client"
)

var httpAddr = regexp.MustCompile(`http=(\S+)`)

// RereadsLimits waits until the daemon says that it is up, and checks that it reads its
// --limits-file at the start and at each hang-up. The daemon was started with
// --upload-rate 1GB and --download-rate 1Gbit, and the file says {"uploadRate": "200MB"}.
func (d *Daemon) RereadsLimits(up, file string) {
	d.t.Helper()
	to := &client.Client{URL: "http://" + httpAddr.FindStringSubmatch(d.Until(up))[1]}
	are := func(upload, download, source int64) {
		d.t.Helper()
		l, err := to.Limits(d.t.Context())
		if err != nil {
			d.t.Fatal(err)
		}
		if l.UploadRate != upload || l.DownloadRate != download || l.SourceRate != source {
			d.t.Errorf("limits are %+v, want %d, %d and %d", l, upload, download, source)
		}
	}
	write := func(text string) {
		d.t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			d.t.Fatal(err)
		}
	}
	are(200_000_000, 125_000_000, 0)
	source := client.Rate(300_000)
	if _, err := to.SetLimits(d.t.Context(), client.LimitsChange{SourceRate: &source}); err != nil {
		d.t.Error(err)
	}
	are(200_000_000, 125_000_000, 300_000)
	write(`{"downloadRate": "1Mbit"}`)
	d.Signal(syscall.SIGHUP)
	d.Until("by=SIGHUP")
	are(1_000_000_000, 125_000, 0)
	for _, wrong := range []string{`{"downloadRate": 0, "uploadRate": 5}`, `{"downloadRate": `, ""} {
		write(wrong)
		d.Signal(syscall.SIGHUP)
		d.Until("SIGHUP: not read anew")
		are(1_000_000_000, 125_000, 0)
	}
	if err := os.Remove(file); err != nil {
		d.t.Error(err)
	}
	d.Signal(syscall.SIGHUP)
	d.Until("SIGHUP: not read anew")
	are(1_000_000_000, 125_000, 0)
	d.Told()
}
