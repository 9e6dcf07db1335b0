package command

import (
	"log/slog"

	"github.com/urfave/cli/v2"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/limits"
	"github.com/landfall-dist/landfall/seeder/client"
)

// rateFlags are the limits' flags in the order in which they are shown; the last is for
// who lands.
var rateFlags = []struct {
	name, usage string
	of          func(*api.LimitsChange) **api.Rate
}{
	{"upload-rate", "what goes to peers, of all builds together", func(c *api.LimitsChange) **api.Rate { return &c.UploadRate }},
	{"download-rate", "what comes from peers, of all builds together", func(c *api.LimitsChange) **api.Rate { return &c.DownloadRate }},
	{"source-rate", "what is read of builds from the buckets that they come from", func(c *api.LimitsChange) **api.Rate { return &c.SourceRate }},
	{"landing-rate", "the parts that go to the regional bucket, of all builds together", func(c *api.LimitsChange) **api.Rate { return &c.LandingRate }},
}

// RateFlags are the limits that a daemon begins with. lands says whether there are
// landings.
func RateFlags(lands bool) (flags []cli.Flag) {
	for _, f := range rateFlags {
		if f.name != "landing-rate" || lands {
			flags = append(flags, String(f.name, "", "`RATE` that limits "+f.usage+", such as 200MB or 1Gbit; 0 for none"))
		}
	}
	return flags
}

// LimitFlags are RateFlags, and the file that goes before them.
func LimitFlags(lands bool) []cli.Flag {
	return append(RateFlags(lands), File("limits-file",
		"`FILE` with limits in place of these, as JSON such as {\"uploadRate\": \"200MB\"}; it is read again on SIGHUP"))
}

// Rates reads the RateFlags that are given.
func Rates(c *cli.Context) (change api.LimitsChange, err error) {
	for _, f := range rateFlags {
		if s := c.String(f.name); s != "" {
			rate, err := limits.Rate(s)
			if err != nil {
				return change, Usagef("--%s: %w", f.name, err)
			}
			*f.of(&change) = rate
		}
	}
	return change, nil
}

// OpenLimits makes the limits that LimitFlags ask for. A hang-up sets them so again, with
// what the file says then.
func OpenLimits(c *cli.Context, logger *slog.Logger, lands bool) (*limits.Limits, error) {
	given, err := Rates(c)
	if err != nil {
		return nil, err
	}
	l, file := limits.New(lands), c.String("limits-file")
	none := new(api.Rate)
	given = limits.Over(given, api.LimitsChange{UploadRate: none, DownloadRate: none, SourceRate: none})
	if lands {
		given = limits.Over(given, api.LimitsChange{LandingRate: none})
	}
	read := func() error {
		change := given
		if file != "" {
			said, err := limits.ReadFile(file)
			if err != nil {
				return err
			}
			change = limits.Over(said, given)
		}
		return l.Change(change)
	}
	if err := read(); err != nil {
		return nil, err
	}
	if file != "" {
		OnHangUp(c.Context, func() error {
			if err := read(); err != nil {
				return err
			}
			logger.Info("limits changed", "bytesPerSecond", l, "by", "SIGHUP", "file", file)
			return nil
		})
	}
	return l, nil
}

// OperatorTokenFlag is that of who asks a daemon for a change.
func OperatorTokenFlag(of string) cli.Flag {
	return File("operator-token", "`FILE` with the "+of+"'s operator token, where it wants one")
}

// ChangeFlags are RateFlags of a command that changes a running daemon's limits. Their
// variables are the daemon's, and not read: what it was started with would be set again.
func ChangeFlags(lands bool) []cli.Flag {
	flags := RateFlags(lands)
	for _, f := range flags {
		f.(*cli.StringFlag).EnvVars = nil
	}
	return flags
}

// ChangeLimits sets the limits that ChangeFlags name, if any, and returns those that hold.
func ChangeLimits(c *cli.Context, to *client.Client) (*client.Limits, error) {
	change, err := Rates(c)
	if err != nil {
		return nil, err
	}
	if change == (api.LimitsChange{}) {
		return to.Limits(c.Context)
	}
	return to.SetLimits(c.Context, change)
}
