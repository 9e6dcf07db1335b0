//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"time"
)

// upload is what publishing a file cannot be faster than: the client's file goes to
// the seeder's host, and is thrown away there.
type upload struct{}

func (upload) name() string { return "upload" }

func (upload) run(ctx context.Context, r *trial) error {
	l, err := r.seeder.listen(seederPort)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if n, err := io.Copy(io.Discard, req.Body); err != nil || n != r.cell.size() {
			http.Error(w, fmt.Sprintf("%d bytes arrived: %v", n, err), http.StatusBadRequest)
		}
	})}
	go server.Serve(l)
	defer server.Close()
	f, err := os.Open(r.builds[0].file)
	if err != nil {
		return err
	}
	defer f.Close()
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://"+netip.AddrPortFrom(r.seeder.addr, seederPort).String(), f)
	if err != nil {
		return err
	}
	req.ContentLength = r.cell.size()
	r.begin()
	resp, err := r.client.client().Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the upload: %s", resp.Status)
	}
	r.end()
	for _, m := range r.regions {
		r.downloaded(m, time.Now())
	}
	return nil
}
