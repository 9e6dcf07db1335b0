// Package terminal shows people at a terminal what the HTTP side answers: tables,
// JSON, and bars that move. Where the output is no terminal, bars become plain
// lines.
package terminal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"golang.org/x/term"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/command"
)

// JSON prints v indented.
func JSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// IsTerminal reports whether w is one.
func IsTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// plain makes text from the network harmless to a terminal: a key may hold
// escape sequences.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// table prints rows under heads, in columns.
func table(w io.Writer, heads []string, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, strings.Join(heads, "\t"))
	for _, row := range rows {
		for i, cell := range row {
			row[i] = plain(cell)
		}
		fmt.Fprintln(t, strings.TrimRight(strings.Join(row, "\t"), "\t"))
	}
	return t.Flush()
}

// Executions prints a page of the list.
func Executions(w io.Writer, page *api.Executions) error {
	if len(page.Executions) == 0 {
		_, err := fmt.Fprintln(w, "nothing has been distributed yet; publish a build with: seeder publish build.zip")
		return err
	}
	var rows [][]string
	for _, e := range page.Executions {
		landed := 0
		for _, d := range e.Destinations {
			if d.State == api.StateLanded {
				landed++
			}
		}
		rows = append(rows, []string{
			e.ExecutionID, e.Key, command.FormatSize(e.Size), e.Status,
			fmt.Sprintf("%d of %d", landed, len(e.Destinations)), took(&e), e.StartTime.Local().Format(time.DateTime),
		})
	}
	if err := table(w, []string{"EXECUTION", "KEY", "SIZE", "STATUS", "LANDED", "TOOK", "STARTED"}, rows); err != nil {
		return err
	}
	if page.Next != "" {
		fmt.Fprintf(w, "more: seeder list --after %s\n", page.Next)
	}
	return nil
}

func took(e *api.Execution) string {
	if e.CompletedAt == nil {
		return "-"
	}
	return e.CompletedAt.Sub(e.StartTime).Round(100 * time.Millisecond).String()
}

// Execution prints one execution and its destinations.
func Execution(w io.Writer, e *api.Execution) error {
	fmt.Fprintf(w, "%s from %s, %s, execution %s: %s\n", plain(e.Key), e.SourceBucket, command.FormatSize(e.Size), e.ExecutionID, phrase(e))
	if e.Error != "" {
		fmt.Fprintf(w, "error: %s\n", plain(e.Error))
	}
	return Arrivals(w, e)
}

func phrase(e *api.Execution) string {
	if e.Ended() {
		return e.Status
	}
	if e.Phase == api.PhasePulling {
		return fmt.Sprintf("%s, pulling, %s", e.Status, command.FormatSize(e.PulledBytes))
	}
	return e.Status + ", " + e.Phase
}

// Arrivals prints the table of an execution's destinations.
func Arrivals(w io.Writer, e *api.Execution) error {
	var rows [][]string
	for _, d := range e.Destinations {
		seconds := "-"
		if d.State == api.StateLanded {
			seconds = fmt.Sprintf("%.1f s", d.Seconds)
		}
		rows = append(rows, []string{
			d.Bucket, dash(d.Region), d.State, percent(d.VerifiedBytes, e.Size, d.State),
			command.FormatSize(d.LandedBytes), seconds, dash(d.Agent), d.Error,
		})
	}
	return table(w, []string{"BUCKET", "REGION", "STATE", "VERIFIED", "LANDED", "TOOK", "AGENT", ""}, rows)
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func percent(n, of int64, state string) string {
	if of == 0 || state == api.StateLanded {
		if state == api.StateLanded {
			return "100%"
		}
		return "0%"
	}
	return fmt.Sprintf("%d%%", n*100/of)
}

// AgentStatus prints what an agent knows.
func AgentStatus(w io.Writer, s *api.AgentStatus) error {
	fmt.Fprintf(w, "%s serves %s in %s (%s)\n\n", s.Node, s.Bucket, plain(s.Region), s.Version)
	var members [][]string
	for _, m := range s.Members {
		members = append(members, []string{m.Name, m.Role, dash(m.Region), m.Addr, m.State})
	}
	if err := table(w, []string{"MEMBER", "ROLE", "REGION", "ADDR", "STATE"}, members); err != nil {
		return err
	}
	fmt.Fprintln(w)
	if len(s.BadPeers) > 0 {
		if err := badPeers(w, s.BadPeers); err != nil {
			return err
		}
		fmt.Fprintln(w)
	}
	if len(s.Builds) == 0 {
		_, err := fmt.Fprintln(w, "no build has come by yet")
		return err
	}
	var builds [][]string
	for _, b := range s.Builds {
		builds = append(builds, []string{
			b.Key, command.FormatSize(b.Size), b.State, percent(b.VerifiedBytes, b.Size, b.State),
			command.FormatSize(b.LandedBytes), command.FormatSize(b.DownRate) + "/s", command.FormatSize(b.UpRate) + "/s",
			fmt.Sprint(len(b.Peers)), b.Error,
		})
	}
	return table(w, []string{"BUILD", "SIZE", "STATE", "VERIFIED", "LANDED", "DOWN", "UP", "PEERS", ""}, builds)
}

func badPeers(w io.Writer, bad []api.BadPeer) error {
	var rows [][]string
	for _, b := range bad {
		until := "-"
		if b.Until != nil {
			until = b.Until.Local().Format(time.DateTime)
		}
		rows = append(rows, []string{
			b.Name, dash(b.Region), dash(b.Addr), b.Reason, b.Since.Local().Format(time.DateTime), until, fmt.Sprint(b.Times),
		})
	}
	return table(w, []string{"BAD PEER", "REGION", "ADDR", "REASON", "SINCE", "LEFT ALONE UNTIL", "TIMES"}, rows)
}

// Watch shows something again and again until ctx ends. On a terminal each
// showing takes the place of the last.
func Watch(ctx context.Context, w io.Writer, interval time.Duration, show func(context.Context) error) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		if IsTerminal(w) {
			fmt.Fprint(w, "\x1b[H\x1b[2J") // home, clear
		}
		if err := show(ctx); err != nil {
			if errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}
