package command

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/landfall-dist/landfall/internal/call"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/ca"
)

// openIdentity opens what --tls, --identity and the --tls-… flags name. Where there is no
// certificate yet it gets one, if it is told how.
func (m *Member) openIdentity(c *cli.Context, kind string) error {
	mode, err := identity.ParseMode(c.String("tls"))
	if err != nil {
		return Usagef("--tls is %w", err)
	}
	dir := c.String("identity")
	files := identity.Files{Cert: c.String("tls-cert"), Key: c.String("tls-key"), Roots: c.String("tls-ca"), Denied: c.String("tls-denied")}
	if mode == identity.Off {
		for _, flag := range []string{"join-token", "enrol"} {
			if c.String(flag) != "" {
				return Usagef("--%s gets a certificate, which needs --tls prefer or require", flag)
			}
		}
		return nil
	}
	in := identity.Files{}
	if dir != "" {
		in = identity.FilesIn(dir)
	}
	for _, f := range []struct{ of, in *string }{{&files.Cert, &in.Cert}, {&files.Key, &in.Key}, {&files.Roots, &in.Roots}, {&files.Denied, &in.Denied}} {
		if *f.of == "" {
			*f.of = *f.in
		}
	}
	if files.Cert == "" || files.Key == "" || files.Roots == "" {
		return Usagef("--tls %s needs --identity DIR (make one with `seeder ca issue`, or name one that is to be made, and --join-token FILE), or --tls-cert, --tls-key and --tls-ca", mode)
	}
	if err := m.enrol(c, identity.Kind(kind), files); err != nil {
		return err
	}
	files.Told = filepath.Join(m.DataDir, "denied")
	if dir := c.String("ca"); dir != "" {
		files.Authority = ca.WithoutKey(dir).Denied()
	}
	if m.Identity, err = identity.Open(files, nil); err != nil {
		return err
	}
	if err := m.Identity.Expired(); err != nil && (!errors.Is(err, identity.ErrExpired) || !c.Bool("tls-renew")) {
		return fmt.Errorf("identity: %w", err)
	}
	m.TLS = mode
	m.Gossip.Identity, m.Gossip.TLS = m.Identity, mode
	m.Gossip.FixedIdentity = !c.Bool("tls-renew")
	m.Gossip.ServesFile = filepath.Join(m.DataDir, "serves.json")
	return nil
}

// ParseServes reads the values of --serves, each REGION=BUCKET[,BUCKET]: urfave/cli cuts
// them at the commas, so what has no region belongs to the one before.
func ParseServes(values []string) (call.Serves, error) {
	serves, region := call.Serves{}, ""
	for _, v := range values {
		bucket := v
		if before, after, ok := strings.Cut(v, "="); ok {
			region, bucket = before, after
		}
		if region == "" || bucket == "" {
			return nil, Usagef("--serves %q: expected REGION=BUCKET[,BUCKET]", v)
		}
		serves[region] = append(serves[region], bucket)
	}
	if err := serves.Check(); err != nil {
		return nil, Usagef("--serves: %w", err)
	}
	return serves, nil
}
