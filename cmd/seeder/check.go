package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/urfave/cli/v2"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/command"
)

// errWeakStore is the end of a check that has found a guarantee to lack.
var errWeakStore = errors.New("a store lacks a guarantee: readers could see what is no build; daemons refuse to work with it unless they have --allow-weak-store")

func checkCommand() *cli.Command {
	return &cli.Command{
		Name:  "check",
		Usage: "see whether the buckets' stores do what Landfall relies on",
		Description: "Asks each store for what it has to refuse, which leaves nothing behind. With --write it also lands one small object, " +
			bucket.OwnPrefix + "check, in every bucket. The exit status is 1 when a guarantee lacks.\n\n" +
			"Example:\n\n  seeder check --bucket global-builds --destinations region-a-builds,region-b-builds --write",
		Flags: []cli.Flag{
			command.Required("bucket", "global `BUCKET`"),
			command.Strings("destinations", "regional `BUCKET`,…"),
			command.String("source-region", "", "AWS `REGION` of the buckets (default: what HeadBucket answers, then AWS_REGION)"),
			command.Bool("write", "land one small object in each bucket"),
		},
		Action: func(c *cli.Context) error {
			cfg, err := command.LoadAWS(c.Context, slog.New(slog.NewTextHandler(os.Stderr, nil)))
			if err != nil {
				return err
			}
			weak := false
			for _, name := range buckets(c) {
				b, err := command.OpenBucket(c.Context, cfg, name, c.String("source-region"))
				if err != nil {
					return err
				}
				probe := (*bucket.Bucket).CheckWrites
				switch {
				case c.Bool("write"):
				case name == c.String("bucket"):
					probe = (*bucket.Bucket).ProbeRead
				default:
					probe = (*bucket.Bucket).Probe
				}
				found, err := probe(b, c.Context)
				if err != nil {
					return err
				}
				weak = showStore(os.Stdout, name, found) || weak
				showAborts(c.Context, os.Stdout, b)
				if name == c.String("bucket") {
					sums, err := b.CheckSums(c.Context, "")
					if err != nil {
						return err
					}
					fmt.Printf("bucket %s: %s\n", name, sums)
				}
			}
			if weak {
				return errWeakStore
			}
			return nil
		},
	}
}

// buckets are the global one and the destinations, each once.
func buckets(c *cli.Context) []string {
	names := []string{c.String("bucket")}
	for _, name := range c.StringSlice("destinations") {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// showStore prints what a store lacks, and reports whether a guarantee falls with it.
func showStore(w io.Writer, name string, found []bucket.Weakness) (weak bool) {
	if len(found) == 0 {
		fmt.Fprintf(w, "bucket %s: its store does what Landfall relies on\n", name)
	}
	for _, f := range found {
		effect := "Landfall does without"
		if f.Grave() {
			effect, weak = "a guarantee lacks", true
		}
		fmt.Fprintf(w, "bucket %s: its store %s (%s)\n", name, f, effect)
	}
	return weak
}

// checkMade says what the stores of the buckets that `init` has made or found lack, and
// nothing where all is well. A bucket that may not be written to is not checked.
func checkMade(ctx context.Context, cfg aws.Config, names []string) error {
	for _, name := range names {
		b, err := command.OpenBucket(ctx, cfg, name, "")
		if err != nil {
			return err
		}
		found, err := b.CheckWrites(ctx)
		if err != nil {
			fmt.Printf("bucket %s: its store was not checked: %v\n", name, err)
			continue
		}
		if len(found) > 0 {
			showStore(os.Stdout, name, found)
		}
	}
	return nil
}

// showAborts says what becomes of uploads that nobody completes: those of a member that was
// killed and does not come back.
func showAborts(ctx context.Context, w io.Writer, b *bucket.Bucket) {
	switch days, err := b.AbortDays(ctx); {
	case err != nil:
		fmt.Fprintf(w, "bucket %s: it is not known what becomes of uploads that are never completed: %v\n", b.Name(), err)
	case days == 0:
		fmt.Fprintf(w, "bucket %s: uploads that are never completed stay, and cost; `seeder init` adds a lifecycle rule that aborts them (AbortIncompleteMultipartUpload)\n", b.Name())
	default:
		fmt.Fprintf(w, "bucket %s: uploads that are never completed are aborted after %d days\n", b.Name(), days)
	}
}

// abortUnfinished gives each bucket the lifecycle rule that showAborts asks for. A store that
// has none, or does not allow it, is said, and no failure.
func abortUnfinished(ctx context.Context, cfg aws.Config, names []string) error {
	for _, name := range names {
		b, err := command.OpenBucket(ctx, cfg, name, "")
		if err != nil {
			return err
		}
		switch made, err := b.AbortUnfinished(ctx); {
		case err != nil:
			fmt.Printf("bucket %s: no lifecycle rule aborts uploads that are never completed: %v\n", name, err)
		case made:
			fmt.Printf("bucket %s: a lifecycle rule aborts uploads that are never completed after 7 days\n", name)
		}
	}
	return nil
}
