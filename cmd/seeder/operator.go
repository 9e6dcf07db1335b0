package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/landfall-dist/landfall/internal/command"
	"github.com/landfall-dist/landfall/internal/operator"
	"github.com/landfall-dist/landfall/internal/terminal"
)

const operatorUsage = "add NAME | list | remove NAME"

// operatorWords are what `seeder operator` does, for completion.
func operatorWords(context.Context, func(string) string) []string {
	return []string{"add", "list", "remove"}
}

func operatorCommand() *cli.Command {
	return &cli.Command{
		Name:      "operator",
		Usage:     "say who may do what over HTTP: make and remove named tokens, and name certificates (--operators)",
		ArgsUsage: operatorUsage,
		Description: "add makes a token, prints it once, and keeps its hash in the file; the daemons that have the file as --operators know it within seconds, " +
			"and so they do of a remove. With --certificate it makes none: the operator shows a certificate of an authority of the daemons' --http-client-ca. --role is view (read), publish (view, and publish, upload, send again), deploy (publish, and cancel) " +
			"or admin (deploy, and change limits, read the record of changes). list shows who is there, and no secrets.\n\n" +
			"Examples:\n\n" +
			"  seeder operator add ci --role publish --expires 90d --operators operators > ci.token\n" +
			"  seeder operator add ann --role admin --certificate spiffe://prod/operator/ann --operators operators\n" +
			"  seeder operator list --operators operators\n" +
			"  seeder operator remove ci --operators operators",
		Flags: []cli.Flag{
			command.Required("operators", "`FILE` with the operators, as the daemons' --operators has it"),
			command.String("role", operator.Publish.String(), "add: `ROLE` of the operator: view, publish, deploy or admin"),
			command.String("expires", "90d", "add: `TIME` from now (90d, 12h), a date (2027-01-31) or never, after which the token is of no use, nor the certificate"),
			command.String("certificate", "", "add: `WHICH` certificate the operator shows: the URI that it names (spiffe://…), which stays when it is renewed, its SHA-256, or a file of it"),
			command.Output(),
		},
		Action: func(c *cli.Context) error {
			asJSON, err := command.JSONWanted(c)
			if err != nil {
				return err
			}
			file, words := c.String("operators"), c.Args().Tail()
			switch c.Args().First() {
			case "add":
				if len(words) != 1 {
					return command.Usagef("operator add takes one NAME")
				}
				return addOperator(c, file, words[0])
			case "remove":
				if len(words) != 1 {
					return command.Usagef("operator remove takes one NAME")
				}
				if err := operator.Remove(file, words[0]); err != nil {
					return err
				}
				fmt.Fprintf(os.Stderr, "%s is no operator any more\n", words[0])
				return nil
			case "list":
				if len(words) > 0 {
					return command.Usagef("operator list takes no arguments")
				}
				return listOperators(file, asJSON)
			}
			return command.Usagef("operator takes %s", operatorUsage)
		},
	}
}

func addOperator(c *cli.Context, file, name string) error {
	role, err := operator.ParseRole(c.String("role"))
	if err != nil {
		return command.Usagef("--%w", err)
	}
	expires, err := parseExpiry(c.String("expires"), time.Now())
	if err != nil {
		return command.Usagef("--expires: %w", err)
	}
	if which := c.String("certificate"); which != "" {
		certificate, err := operator.ParseCertificate(which)
		if err != nil {
			return command.Usagef("--certificate: %w", err)
		}
		if err := operator.AddCertificate(file, name, role, expires, certificate); err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "%s has the role %s until %s, by the certificate %s\n", name, role, until(expires), certificate)
		return nil
	}
	token, err := operator.Add(file, name, role, expires)
	if err != nil {
		return err
	}
	// The token alone, so that it can go into a file; what is said of it goes elsewhere.
	fmt.Fprintf(os.Stderr, "%s has the role %s until %s; this is the only time that the token is shown:\n", name, role, until(expires))
	fmt.Println(string(token))
	return nil
}

func until(expires time.Time) string {
	if expires.IsZero() {
		return "it is removed"
	}
	return expires.UTC().Format(time.RFC3339)
}

// maxExpiry bounds --expires.
const maxExpiry = 100 * 365 * 24 * time.Hour

// parseExpiry reads a time from now, a date, a time, or never, which is zero.
func parseExpiry(s string, now time.Time) (time.Time, error) {
	if s == "never" {
		return time.Time{}, nil
	}
	at, err := time.Parse(time.DateOnly, s)
	if err != nil {
		at, err = time.Parse(time.RFC3339, s)
	}
	if days, ok := strings.CutSuffix(s, "d"); err != nil && ok {
		n, dayErr := strconv.Atoi(days)
		if err = dayErr; err == nil && n <= int(maxExpiry/(24*time.Hour)) {
			at = now.Add(time.Duration(n) * 24 * time.Hour)
		}
	} else if err != nil {
		var d time.Duration
		if d, err = time.ParseDuration(s); err == nil {
			at = now.Add(d)
		}
	}
	switch {
	case err != nil:
		return at, fmt.Errorf("%q is no time such as 90d, 12h or 2027-01-31, nor never", s)
	case !at.After(now) || at.Sub(now) > maxExpiry:
		return at, fmt.Errorf("%s is not in the next %d years", s, int(maxExpiry.Hours()/24/365))
	}
	return at.Truncate(time.Second), nil
}

func listOperators(file string, asJSON bool) error {
	list, err := operator.ReadList(file)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w (`seeder operator add` makes the file)", err)
	}
	if err != nil {
		return err
	}
	slices.SortFunc(list, func(a, b operator.Operator) int { return strings.Compare(a.Name, b.Name) })
	if asJSON {
		return terminal.JSON(os.Stdout, operator.List(list, time.Now()))
	}
	return terminal.Operators(os.Stdout, operator.List(list, time.Now()))
}
