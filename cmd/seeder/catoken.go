package main

import (
	"errors"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/landfall-dist/landfall/internal/command"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/ca"
	"github.com/landfall-dist/landfall/internal/private"
)

func caToken(c *cli.Context, words []string) error {
	var what string
	if len(words) > 0 {
		what = words[0]
	}
	var region, name string
	switch {
	case what == "list" && len(words) == 1:
		return listJoinTokens(c)
	case what == "remove" && len(words) == 2:
		d, err := openCA(c)
		if err != nil {
			return err
		}
		if err := d.RemoveJoinToken(words[1]); err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "join token %s is of no use any more\n", words[1])
		return nil
	case what == string(identity.Seeder) && len(words) <= 2:
		name = append(words, "")[1]
	case what == string(identity.Agent) && len(words) >= 2 && len(words) <= 3:
		region, name = words[1], append(words, "")[2]
	default:
		return command.Usagef("ca token takes agent REGION [NAME], seeder [NAME], list, or remove ID")
	}
	d, err := openCA(c)
	if err != nil {
		return err
	}
	token, kept, err := d.NewJoinToken(identity.Kind(what), region, name, c.Duration("ttl"))
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "join token %s for one %s, until %s; only its hash is kept\n", kept.ID, kept.For(), kept.Ends.Format(time.RFC3339))
	if out := c.String("out"); out != "" {
		if err := private.Write(out, []byte(token.Text()+"\n")); err != nil {
			return errors.Join(fmt.Errorf("writing the join token: %w", err), d.RemoveJoinToken(kept.ID))
		}
		return nil
	}
	// The token alone, so that it can go into a file; what is said of it goes elsewhere.
	fmt.Println(token.Text())
	return nil
}

func listJoinTokens(c *cli.Context) error {
	d, err := openCA(c)
	if err != nil {
		return err
	}
	list, err := d.JoinTokens()
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tFOR\tENDS\tSTATE")
	for _, t := range list {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", t.ID, t.For(), t.Ends.UTC().Format(time.RFC3339), stateOf(t))
	}
	return w.Flush()
}

func stateOf(t ca.JoinToken) string {
	switch {
	case t.Used != nil:
		return "used by " + t.Used.ID + " from " + t.Used.From + " at " + t.Used.At.UTC().Format(time.RFC3339)
	case !time.Now().Before(t.Ends):
		return "ended"
	}
	return "open"
}
