package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/landfall-dist/landfall/internal/command"
	"github.com/landfall-dist/landfall/internal/gossip"
)

func keyringWords() []string { return []string{"list", "add", "use", "remove"} }

func keyringCommand() *cli.Command {
	return &cli.Command{
		Name:      "keyring",
		Usage:     "change the gossip key, without a stop",
		ArgsUsage: "list | add | use [KEY] | remove [KEY] FILE",
		Description: "Members send with the first key of their --gossip-key FILE and receive with all of them, and read the file again within 5 s of a change. " +
			"So after each step, bring FILE to every member and wait for `gossip keys changed` in its log before the next one. " +
			"KEY is what list shows; without it the last one is meant.\n\n" +
			"Example:\n\n" +
			"  seeder keyring add gossip.key\n" +
			"  seeder keyring use gossip.key\n" +
			"  seeder keyring remove gossip.key\n" +
			"  seeder keyring list gossip.key",
		Action: func(c *cli.Context) error {
			words := c.Args().Slice()
			word := c.Args().First()
			if len(words) < 2 || len(words) > 3 || len(words) == 3 && word != "use" && word != "remove" {
				return command.Usagef("keyring takes list, add, use [KEY] or remove [KEY], and the FILE of --gossip-key")
			}
			file, id := words[len(words)-1], ""
			if len(words) == 3 {
				id = words[1]
			}
			var err error
			switch word {
			case "list":
				return listKeys(file)
			case "add":
				id, err = gossip.AddKey(file)
			case "use":
				id, err = gossip.UseKey(file, id)
			case "remove":
				id, err = gossip.RemoveKey(file, id)
			default:
				return command.Usagef("keyring has no %s, it takes list, add, use or remove", command.Quote(word))
			}
			if err != nil {
				return err
			}
			fmt.Printf("%s: %s; bring %s to every member now\n", word, id, file)
			return nil
		},
	}
}

func listKeys(file string) error {
	keys, err := gossip.ReadKeys(file)
	if err != nil {
		return err
	}
	for i, k := range keys {
		if i == 0 {
			fmt.Printf("%s  in use\n", gossip.KeyID(k))
		} else {
			fmt.Printf("%s\n", gossip.KeyID(k))
		}
	}
	return nil
}
