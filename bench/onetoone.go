//go:build linux

package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/command"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/manifest/manifesttest"
	"github.com/landfall-dist/landfall/internal/peerwire"
	"github.com/landfall-dist/landfall/internal/swarm"
)

const oneSize = 1 << 30

// oneToOne compares a download by the seeder's and the agent's engine with curl,
// both to a new file. Nothing is landed: S3 would be measured, which runs beside
// it on the same machine.
func oneToOne(ctx context.Context, s *stack, c *cli.Context) error {
	file := filepath.Join(s.dir, "build.bin")
	if err := makeFile(file, 0, oneSize); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	serve, err := s.start("serve", self, "serve", file)
	if err != nil {
		return err
	}
	url, err := serve.Answer(ctx, "serving ")
	if err != nil {
		return err
	}
	ways := []*way{{name: "engine to engine"}}
	if c.Bool("tls") {
		of, err := newAuthority(s.dir)
		if err != nil {
			return err
		}
		over := &way{name: "over TLS"}
		for _, end := range []struct {
			flags        *[]string
			region, name string
		}{{&over.seeder, "", "seeder"}, {&over.agent, "bench", "agent"}} {
			dir, err := of.issue(end.region, end.name)
			if err != nil {
				return err
			}
			*end.flags = []string{"--identity", dir}
		}
		ways = append(ways, over)
	}
	for i, w := range ways {
		seed, err := s.start(fmt.Sprintf("seed-%d", i), slices.Concat([]string{self, "seed", "--dir", filepath.Join(s.dir, fmt.Sprintf("seed-data-%d", i))}, w.seeder, []string{file})...)
		if err != nil {
			return err
		}
		seeding, err := seed.Answer(ctx, "seeding ")
		if err != nil {
			return err
		}
		w.infohash, w.addr, _ = strings.Cut(seeding, " ")
	}
	curl := &way{name: "curl from Go"}
	for round := range c.Int("rounds") + 1 {
		for i, w := range ways {
			dir := filepath.Join(s.dir, "fetch-data")
			fetch, err := s.start(fmt.Sprintf("fetch-%d-%d", round, i), append([]string{self, "fetch", "--dir", dir, "--infohash", w.infohash, "--from", w.addr}, w.agent...)...)
			if err != nil {
				return err
			}
			took, err := fetch.Answer(ctx, "fetched ")
			if err != nil {
				return err
			}
			fetch.End(syscall.SIGTERM)
			if err := errors.Join(os.RemoveAll(dir), w.count(round, took)); err != nil {
				return err
			}
		}
		copied := filepath.Join(s.dir, "curl.bin")
		took, err := output("curl", "-sS", "-o", copied, "-w", "%{time_total}", url)
		if err != nil {
			return err
		}
		if err := errors.Join(os.Remove(copied), curl.count(round, took)); err != nil {
			return err
		}
	}
	for _, w := range append(ways, curl) {
		fmt.Printf("%-16s  %.0f MB/s  (%.0f to %.0f)\n", w.name, w.median(), slices.Min(w.rates), slices.Max(w.rates))
	}
	fmt.Printf("%-16s  %.2f\n", "ratio", ways[0].median()/curl.median())
	if len(ways) > 1 {
		fmt.Printf("%-16s  %.2f\n", "ratio with TLS", ways[1].median()/ways[0].median())
	}
	return nil
}

// way is one way to bring the file from one process to another.
type way struct {
	name           string
	seeder, agent  []string // flags
	infohash, addr string
	rates          []float64 // MB/s
}

// count takes in a time, in seconds; the first one warms up memory and caches.
func (w *way) count(round int, took string) error {
	var seconds float64
	if _, err := fmt.Sscan(took, &seconds); err != nil {
		return fmt.Errorf("%q is no time: %w", took, err)
	}
	if round > 0 {
		w.rates = append(w.rates, oneSize/1e6/seconds)
	}
	return nil
}

func (w *way) median() float64 { return slices.Sorted(slices.Values(w.rates))[len(w.rates)/2] }

// engineCommands are the two ends of oneToOne, and the server beside them.
func engineCommands() []*cli.Command {
	dir := command.Required("dir", "`DIR` for the cache")
	certified := command.String("identity", "", "`DIR` of a certificate, to speak TLS with")
	return []*cli.Command{
		{
			Name: "serve", Usage: "a Go HTTP server of one file (used by one-to-one)", Hidden: true, ArgsUsage: "FILE",
			Action: func(c *cli.Context) error {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					return err
				}
				server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					http.ServeFile(w, r, c.Args().First())
				}), ReadHeaderTimeout: time.Minute}
				context.AfterFunc(c.Context, func() { server.Close() })
				fmt.Printf("serving http://%s/\n", l.Addr())
				if err := server.Serve(l); err != http.ErrServerClosed {
					return err
				}
				return nil
			},
		},
		{
			Name: "seed", Usage: "the seeder's engine with one file (used by one-to-one)", Hidden: true, ArgsUsage: "FILE",
			Flags: []cli.Flag{dir, certified},
			Action: func(c *cli.Context) error {
				return withEngine(c, "seeder", true, func(e *engine) error {
					entry, err := e.fill(c.Args().First())
					if err != nil {
						return err
					}
					if _, err := e.Seed(entry, "build", nil); err != nil {
						return err
					}
					infohash := entry.InfoHash()
					fmt.Printf("seeding %x %s\n", infohash[:], e.addr)
					<-c.Context.Done()
					return nil
				})
			},
		},
		{
			Name: "fetch", Usage: "the agent's engine, downloading (used by one-to-one)", Hidden: true,
			Flags: []cli.Flag{dir, certified, command.Required("infohash", "`HEX`"), command.Required("from", "`ADDR` of the seeder's engine")},
			Action: func(c *cli.Context) error {
				from, err := netip.ParseAddrPort(c.String("from"))
				if err != nil {
					return err
				}
				var infohash manifest.InfoHash
				if _, err := hex.Decode(infohash[:], []byte(c.String("infohash"))); err != nil {
					return err
				}
				return withEngine(c, "agent", false, func(e *engine) error {
					started := time.Now()
					t, err := e.Fetch(swarm.Fetch{InfoHash: infohash, Shape: manifest.ShapeOf(oneSize)})
					if err != nil {
						return err
					}
					t.AddPeers([]peerwire.Peer{{ID: peerwire.PeerID("seeder"), Addr: from}})
					if _, err := t.Entry(c.Context, nil); err != nil {
						return err
					}
					select {
					case <-t.Whole():
					case <-c.Context.Done():
						return c.Context.Err()
					}
					fmt.Printf("fetched %.3f\n", time.Since(started).Seconds())
					<-c.Context.Done()
					return nil
				})
			},
		},
	}
}

type engine struct {
	*swarm.Swarm
	cache *cache.Cache
	addr  net.Addr
}

func withEngine(c *cli.Context, name string, handOut bool, f func(*engine) error) error {
	store, err := cache.Open(c.String("dir"), 2*oneSize, slog.Default())
	if err != nil {
		return err
	}
	defer store.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	cfg := peerwire.Config{Listener: l, Logger: slog.New(slog.DiscardHandler)}
	if dir := c.String("identity"); dir != "" {
		cfg.TLS = identity.Require
		if cfg.Identity, err = identity.Open(identity.FilesIn(dir), nil); err != nil {
			return err
		}
	}
	s, err := swarm.New(swarm.Config{Cache: store, Name: name, HandOut: handOut, Config: cfg})
	if err != nil {
		return err
	}
	defer s.Close()
	return f(&engine{s, store, l.Addr()})
}

// fill puts a file into the cache, as one segment.
func (e *engine) fill(file string) (*cache.Entry, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	p, err := e.cache.Pull("build", 0, "", oneSize, nil)
	if err != nil {
		return nil, err
	}
	if _, err := p.WriteAt(content, 0); err != nil {
		return nil, err
	}
	return p.Commit(manifesttest.Segment(content))
}
