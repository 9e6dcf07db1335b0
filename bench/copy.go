//go:build linux

package main

import (
	"errors"
	"io"
	"log/slog"
	"os"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/urfave/cli/v2"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/command"
)

// copyCommand copies one object from one S3 to another, as replication does, or to a
// file.
func copyCommand() *cli.Command {
	return &cli.Command{
		Name:   "copy",
		Usage:  "copy an object to another endpoint or a file (used by wan)",
		Hidden: true,
		Flags: []cli.Flag{
			command.Required("key", "`KEY` of the object"),
			command.Required("from", "`BUCKET` at the SDK's own endpoint"),
			command.String("to", "", "`BUCKET` at --endpoint"),
			command.String("endpoint", "", "`URL` of the other S3"),
			command.String("to-file", "", "`FILE` instead"),
		},
		Action: func(c *cli.Context) error {
			cfg, err := command.LoadAWS(c.Context, slog.Default())
			if err != nil {
				return err
			}
			from, err := bucket.Open(c.Context, cfg, c.String("from"), bucket.Options{})
			if err != nil {
				return err
			}
			object, err := from.Head(c.Context, c.String("key"))
			if err != nil {
				return err
			}
			body, err := from.GetRange(c.Context, object.Key, object.ETag, 0, object.Size)
			if err != nil {
				return err
			}
			defer body.Close()
			if name := c.String("to-file"); name != "" {
				f, err := os.Create(name)
				if err != nil {
					return err
				}
				_, err = io.Copy(f, body)
				return errors.Join(err, f.Close())
			}
			there := cfg.Copy()
			there.BaseEndpoint, there.ConfigSources = aws.String(c.String("endpoint")), nil
			to, err := bucket.Open(c.Context, there, c.String("to"), bucket.Options{})
			if err != nil {
				return err
			}
			_, err = to.Upload(c.Context, object.Key, body, object.Size, object.Headers)
			return err
		},
	}
}
