package command

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/landfall-dist/landfall/internal/call"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/awsproof"
)

// enrol gets this member its first certificate, where there is none and it is told how.
func (m *Member) enrol(c *cli.Context, kind identity.Kind, files identity.Files) error {
	file, how := c.String("join-token"), "--join-token"
	byAWS, err := enrolsByAWS(c)
	switch {
	case err != nil:
		return err
	case byAWS && file != "":
		return Usagef("--join-token and --enrol aws are both given, one gets the certificate")
	case byAWS:
		how = "--enrol aws"
	case file == "":
		return nil
	}
	if _, err := os.Lstat(files.Cert); err == nil {
		m.Logger.Debug("there is a certificate, none is asked for", "certificate", files.Cert)
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("looking for a certificate: %w", err)
	}
	if len(c.StringSlice("join")) == 0 {
		return Usagef("%s needs --join HOST:PORT of a seeder, which gives the certificate", how)
	}
	seeders, err := gossip.ParseJoin(c.StringSlice("join"))
	if err != nil {
		return UsageError{err}
	}
	j := &call.Joiner{
		Files: files, Seeders: seeders, Logger: m.Logger,
		Ask: call.EnrolRequest{Kind: kind, Region: c.String("region"), Name: c.String("name")},
	}
	if byAWS {
		j.Prove = func(ctx context.Context, cluster string, key [sha256.Size]byte) (awsproof.Proof, error) {
			return awsproof.New(ctx, m.AWS, c.String("enrol-sts"), cluster, key)
		}
	} else {
		token, err := identity.ReadJoinToken(file)
		if err != nil {
			return err
		}
		j.Anchor.Pin, j.Ask.Token = token.Root, token.Text()
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
	case byAWS && errors.Is(err, fs.ErrNotExist):
		return Usagef("--enrol aws needs the certificate of the authority, which is no secret (`ca.pem` of `seeder ca init`), as --tls-ca FILE or %s: by it the seeder is known", files.Roots)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("authorities that are trusted: %w", err)
	}
	if err := j.Join(c.Context); err != nil {
		return fmt.Errorf("getting the first certificate of this member: %w", err)
	}
	return nil
}

// STSFlag names the STS that is asked who an agent is.
func STSFlag() *cli.StringFlag {
	f := String("enrol-sts", awsproof.DefaultEndpoint, "`URL` of AWS STS that --enrol aws and --enrol-aws are about, the same on agents and seeders")
	f.Action = func(_ *cli.Context, given string) error {
		if err := awsproof.CheckEndpoint(given); err != nil {
			return Usagef("--enrol-sts: %w", err)
		}
		return nil
	}
	return f
}

// EnrolFlags are those by which an agent gets its first certificate without a token.
func EnrolFlags() []cli.Flag {
	return []cli.Flag{
		String("enrol", "", "`aws`: where --identity holds no certificate yet, the first one is got by this process's AWS credentials from a seeder with --enrol-aws; --tls-ca has the authority's certificate"),
		STSFlag(),
	}
}

func enrolsByAWS(c *cli.Context) (bool, error) {
	switch how := c.String("enrol"); how {
	case "":
		return false, nil
	case "aws":
		return true, nil
	default:
		return false, Usagef("--enrol is %q, expected aws", how)
	}
}
