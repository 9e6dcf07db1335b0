package command

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/landfall-dist/landfall/internal/call"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/identity"
)

// enrol gets this member its first certificate, where there is none and it is told how.
func (m *Member) enrol(c *cli.Context, kind identity.Kind, files identity.Files) error {
	file := c.String("join-token")
	if file == "" {
		return nil
	}
	if _, err := os.Lstat(files.Cert); err == nil {
		m.Logger.Debug("the join token is not used, there is a certificate", "certificate", files.Cert)
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("looking for a certificate: %w", err)
	}
	if len(c.StringSlice("join")) == 0 {
		return Usagef("--join-token needs --join HOST:PORT of a seeder, which gives the certificate")
	}
	seeders, err := gossip.ParseJoin(c.StringSlice("join"))
	if err != nil {
		return UsageError{err}
	}
	token, err := identity.ReadJoinToken(file)
	if err != nil {
		return err
	}
	j := &call.Joiner{
		Files: files, Seeders: seeders, Logger: m.Logger,
		Anchor: identity.Anchor{Pin: token.Root},
		Ask:    call.EnrolRequest{Kind: kind, Region: c.String("region"), Name: c.String("name"), Token: token.Text()},
	}
	if j.Ask.Otherwise, err = m.name("", string(kind)); err != nil {
		return err
	}
	for _, name := range []string{j.Ask.Name, j.Ask.Otherwise} {
		id := identity.ID{Cluster: "x", Kind: kind, Region: j.Ask.Region, Name: name}
		if err := id.Check(); name != "" && err != nil {
			return Usagef("a certificate of this member cannot be made: %w", err)
		}
	}
	switch j.Anchor.Roots, err = identity.ReadRoots(files.Roots); {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("authorities that are trusted: %w", err)
	}
	if err := j.Join(c.Context); err != nil {
		return fmt.Errorf("getting the first certificate of this member: %w", err)
	}
	return nil
}
