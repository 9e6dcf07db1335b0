package main

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/landfall-dist/landfall/internal/call"
	"github.com/landfall-dist/landfall/internal/command"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/awsproof"
	"github.com/landfall-dist/landfall/internal/identity/ca"
)

// caWords are what `seeder ca` does, for completion.
func caWords(context.Context, func(string) string) []string {
	return []string{"init", "issue", "token", "renew", "deny"}
}

const caUsage = "init | issue seeder NAME | issue agent REGION NAME | issue host REGION NAME | issue operator NAME | token agent REGION [NAME] | token seeder [NAME] | token list | token remove ID | renew DIR… | deny WHAT…"

func caCommand() *cli.Command {
	return &cli.Command{
		Name:      "ca",
		Usage:     "make the certificates by which members know each other (--tls)",
		ArgsUsage: caUsage,
		Description: "A small authority of your own; certificates of another (SPIRE, a company's) do as well, with the names that docs/security.md has.\n\n" +
			"init makes it: a key that is to be kept as safe as the signing key, a certificate, and for each of --regions an authority for that region's hosts. " +
			"issue makes a key and a certificate for a member, 30 days long, in --out, which `run --identity` takes; " +
			"NAME is the member's --name; for an operator it is 90 days long, and the commands take it (--client-cert). " +
			"token makes a token with which one new member gets its first certificate by itself, " +
			"from a seeder that has this directory as --ca: it is the member's --join-token, holds for --ttl, and is of no use a second time. " +
			"renew makes new ones in the place of those in DIR. " +
			"deny puts certificates on the list of denied ones: a file of one, its serial number, its fingerprint, or the name of all of a member's " +
			"(spiffe://…); a seeder that runs with --ca DIR, or has the list, `denied`, in its --identity, reads it within 10 s and tells all members, who keep it.\n\n" +
			"Examples:\n\n" +
			"  seeder ca init --dir ca --cluster prod --regions region-a,region-b\n" +
			"  seeder ca issue seeder seeder-1 --dir ca --out seeder-1\n" +
			"  seeder ca issue agent region-a agent-1 --dir ca --out agent-1\n" +
			"  seeder ca issue operator ci --dir ca --out ci\n" +
			"  seeder ca token agent region-b --dir ca --out join.token\n" +
			"  seeder ca token list --dir ca\n" +
			"  seeder ca renew seeder-1 agent-1 --dir ca\n" +
			"  seeder ca deny agent-1/cert.pem --dir ca --reason \"stolen laptop\"",
		Flags: []cli.Flag{
			command.File("dir", "`DIR` of the authority; it holds the key that everything depends on"),
			command.String("cluster", "", "init: `NAME` of the cluster, such as prod or landfall.example.com"),
			command.Strings("regions", "init: `REGION`,… that get an authority for their hosts; renew: those whose is made anew"),
			command.String("out", "", "issue: `DIR` for certificate, key, and what is trusted and denied (default: NAME); token: file for the token (default: it is printed)"),
			command.Duration("ttl", ca.JoinTokenLife, "token: `TIME` for which it may be used, at most 168h"),
			command.String("reason", "", "deny: `TEXT` to be kept beside the entry"),
		},
		Action: func(c *cli.Context) error {
			if c.String("dir") == "" {
				return command.Usagef("ca needs --dir DIR, where the authority is")
			}
			words := c.Args().Tail()
			switch c.Args().First() {
			case "init":
				return caInit(c, words)
			case "issue":
				return caIssue(c, words)
			case "token":
				return caToken(c, words)
			case "renew":
				return caRenew(c, words)
			case "deny":
				return caDeny(c, words)
			}
			return command.Usagef("ca takes %s", caUsage)
		},
	}
}

func caInit(c *cli.Context, words []string) error {
	if len(words) > 0 || c.String("cluster") == "" {
		return command.Usagef("ca init takes --cluster NAME and no arguments")
	}
	d, err := ca.Init(c.String("dir"), c.String("cluster"), c.StringSlice("regions"), nil)
	if err != nil {
		return err
	}
	fmt.Printf("authority of cluster %s in %s, until %s\n", d.Cluster(), c.String("dir"), day(d.Certificate()))
	for _, r := range c.StringSlice("regions") {
		fmt.Printf("authority of the hosts of %s\n", r)
	}
	return nil
}

func caIssue(c *cli.Context, words []string) error {
	d, err := openCA(c)
	if err != nil {
		return err
	}
	id := identity.ID{Cluster: d.Cluster()}
	switch {
	case len(words) == 2 && words[0] == "operator":
		out := cmp.Or(c.String("out"), words[1])
		chain, err := d.WriteOperator(words[1], out)
		if err != nil {
			return err
		}
		fmt.Printf("%s in %s, until %s\n", chain[0].URIs[0], out, day(chain[0]))
		return nil
	case len(words) == 2 && words[0] == string(identity.Seeder):
		id.Kind, id.Name = identity.Seeder, words[1]
	case len(words) == 3 && (words[0] == string(identity.Agent) || words[0] == string(identity.Host)):
		id.Kind, id.Region, id.Name = identity.Kind(words[0]), words[1], words[2]
	default:
		return command.Usagef("ca issue takes seeder NAME, agent REGION NAME, host REGION NAME or operator NAME")
	}
	if err := id.Check(); err != nil {
		return command.UsageError{Err: err}
	}
	out := c.String("out")
	if out == "" {
		out = id.Name
	}
	chain, err := d.Write(id, out)
	if err != nil {
		return err
	}
	fmt.Printf("%s in %s, until %s\n", id, out, day(chain[0]))
	return nil
}

func caRenew(c *cli.Context, words []string) error {
	d, err := openCA(c)
	if err != nil {
		return err
	}
	regions := c.StringSlice("regions")
	if len(words) == 0 && len(regions) == 0 {
		return command.Usagef("ca renew takes the DIR of an identity, or --regions")
	}
	for _, r := range regions {
		if err := d.AddRegion(r); err != nil {
			return err
		}
		fmt.Printf("authority of the hosts of %s\n", r)
	}
	for _, dir := range words {
		chain, id, err := d.Renew(dir)
		if err != nil {
			return err
		}
		fmt.Printf("%s in %s, until %s\n", id, dir, day(chain[0]))
	}
	return nil
}

func caDeny(c *cli.Context, words []string) error {
	if len(words) == 0 {
		return command.Usagef("ca deny takes a file of a certificate, a serial number, a fingerprint or a name (spiffe://…)")
	}
	d, err := ca.Open(c.String("dir"), nil)
	if err != nil && !errors.Is(err, ca.ErrNoKey) {
		return err
	}
	if d == nil {
		d = ca.WithoutKey(c.String("dir"))
	}
	for _, w := range words {
		entry, err := deniedEntry(w)
		if err != nil {
			return command.UsageError{Err: err}
		}
		added, err := d.Deny(entry, c.String("reason"))
		switch {
		case err != nil:
			return err
		case added:
			fmt.Printf("denied: %s\n", entry)
		default:
			fmt.Printf("denied already: %s\n", entry)
		}
	}
	fmt.Printf("a seeder with this --ca tells all members within seconds; where there is none, copy %s to a seeder's --identity\n", d.Denied())
	return nil
}

// deniedEntry reads what `seeder ca deny` is given.
func deniedEntry(word string) (string, error) {
	if strings.HasPrefix(word, "spiffe://") {
		return identity.ParseDenied("id " + word)
	}
	if text, err := os.ReadFile(word); err == nil {
		certs, err := identity.ParseCerts(text, 16)
		if err != nil {
			return "", fmt.Errorf("%s: %w", word, err)
		}
		return identity.ParseDenied("fingerprint " + identity.FingerprintOf(certs[0]).String())
	}
	if entry, err := identity.ParseDenied("fingerprint " + word); err == nil {
		return entry, nil
	}
	entry, err := identity.ParseDenied("serial " + word)
	if err != nil {
		return "", fmt.Errorf("%.80q is no file of a certificate, serial number, fingerprint or name (spiffe://…)", word)
	}
	return entry, nil
}

func openCA(c *cli.Context) (*ca.Dir, error) {
	d, err := ca.Open(c.String("dir"), nil)
	if errors.Is(err, os.ErrNotExist) && !errors.Is(err, ca.ErrNoKey) {
		return nil, fmt.Errorf("%w; make one with `seeder ca init --dir %s --cluster NAME`", err, c.String("dir"))
	}
	return d, err
}

// awsEnrolment reads whom AWS vouches for; nil for nobody.
func awsEnrolment(c *cli.Context, cluster string) (*call.AWSEnrolment, error) {
	var rules []awsproof.Rule
	for _, text := range c.StringSlice("enrol-aws") {
		r, err := awsproof.ParseRule(text)
		if err == nil {
			err = (identity.ID{Cluster: cluster, Kind: identity.Agent, Region: r.Region, Name: "x"}).Check()
		}
		if err != nil {
			return nil, command.Usagef("--enrol-aws: %w", err)
		}
		rules = append(rules, r)
	}
	if len(rules) == 0 {
		return nil, nil
	}
	return call.NewAWSEnrolment(rules, c.String("enrol-sts"), cluster), nil
}

func day(cert *x509.Certificate) string { return cert.NotAfter.UTC().Format(time.DateOnly) }

// openServes reads what a seeder with TLS says of the regions, and the authority.
func openServes(c *cli.Context, m *command.Member) error {
	var err error
	if m.Gossip.Serves, err = command.ParseServes(c.StringSlice("serves")); err != nil {
		return err
	}
	if len(c.StringSlice("enrol-aws")) > 0 && (m.Identity == nil || c.String("ca") == "") {
		return command.Usagef("--enrol-aws gives certificates, which needs --tls prefer or require, and --ca DIR")
	}
	if m.Identity == nil {
		if c.String("ca") != "" {
			return command.Usagef("--ca renews certificates, which needs --tls prefer or require")
		}
		return nil
	}
	if len(m.Gossip.Serves) == 0 {
		return command.Usagef("--tls %s needs --serves REGION=BUCKET,… for each region: which buckets an agent's certificate is good for is said here", m.TLS)
	}
	for _, bucket := range c.StringSlice("destinations") {
		served := false
		for region := range m.Gossip.Serves {
			served = served || m.Gossip.Serves.Has(region, bucket)
		}
		if !served {
			return command.Usagef("--destinations: no region of --serves has %s; give --serves REGION=%s", bucket, bucket)
		}
	}
	if dir := c.String("ca"); dir != "" {
		d, err := ca.Open(dir, nil)
		if err != nil {
			return err
		}
		if own := m.Identity.ID().Cluster; d.Cluster() != own {
			return fmt.Errorf("the authority in %s is of cluster %s, and this seeder of %s", dir, d.Cluster(), own)
		}
		m.Gossip.Authority = d
		m.Gossip.Enrolment = call.NewEnrolment(d, m.Identity, m.Logger)
		if m.Gossip.Enrolment.AWS, err = awsEnrolment(c, d.Cluster()); err != nil {
			return err
		}
	} else {
		m.Logger.Info("this seeder has no authority's key: it gives and renews nobody's certificate, --ca DIR would give it one")
	}
	return nil
}
