package main

import (
	"fmt"
	"log/slog"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/urfave/cli/v2"

	"github.com/landfall-dist/landfall/internal/command"
	"github.com/landfall-dist/landfall/internal/signing"
)

// signingFlags say where the key lies that signs announcements.
func signingFlags() []cli.Flag {
	return []cli.Flag{
		command.File("signing-key", "`FILE` with the key that signs announcements (make one with `seeder keygen`), or awskms:ID of a P-256 key in AWS KMS"),
		command.File("signing-command", "`COMMAND` that signs instead: it gets what is to be signed on its standard input, and prints the signature in base64"),
		command.File("signing-public-key", "`KEY` that --signing-command signs with, or a file of it"),
	}
}

// localSigner opens what signingFlags name; nil where that is a key in AWS KMS.
func localSigner(c *cli.Context) (signing.Signer, error) {
	key, line, public := c.String("signing-key"), c.String("signing-command"), c.String("signing-public-key")
	switch {
	case key == "" && line == "":
		return nil, command.Usagef("nothing signs announcements: give --signing-key FILE (make one with `seeder keygen`)")
	case key != "" && (line != "" || public != ""):
		return nil, command.Usagef("--signing-key and --signing-command: give one of them")
	case line != "" && public == "":
		return nil, command.Usagef("--signing-command: give --signing-public-key, too, the key that it signs with")
	case line != "":
		k, err := signing.ReadPublicKey(public)
		if err != nil {
			return nil, fmt.Errorf("--signing-public-key: %w", err)
		}
		return signing.Command{Line: line, Key: k}, nil
	case strings.HasPrefix(key, signing.KMSPrefix):
		return nil, nil
	}
	return signing.ReadKey(key)
}

// kmsSigner opens the key in AWS KMS that signingFlags name.
func kmsSigner(c *cli.Context, cfg aws.Config) (signing.Signer, error) {
	return signing.OpenKMS(c.Context, cfg, strings.TrimPrefix(c.String("signing-key"), signing.KMSPrefix))
}

func publicKeyCommand() *cli.Command {
	return &cli.Command{
		Name:  "public-key",
		Usage: "print the public half of a signing key, which agents take with --trust",
		Description: "Examples:\n\n  seeder public-key --signing-key seeder.key\n" +
			"  seeder public-key --signing-key awskms:alias/landfall",
		Flags: signingFlags(),
		Action: func(c *cli.Context) error {
			signer, err := localSigner(c)
			if err == nil && signer == nil {
				var cfg aws.Config
				if cfg, err = command.LoadAWS(c.Context, slog.New(slog.DiscardHandler)); err == nil {
					signer, err = kmsSigner(c, cfg)
				}
			}
			if err != nil {
				return err
			}
			fmt.Println(signer.Public())
			return nil
		},
	}
}
