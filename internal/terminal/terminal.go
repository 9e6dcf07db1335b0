// Package terminal shows people at a terminal what the HTTP side answers: tables,
// JSON, and bars that move. Where the output is no terminal, bars become plain
// lines.
package terminal

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/command"
)

// JSON prints v indented.
func JSON(w io.Writer, v any) error { return writeJSON(w, v, "  ") }

// writeJSON prints v with a newline behind it.
func writeJSON(w io.Writer, v any, indent string) error {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", indent)
	if err := enc.Encode(v); err != nil {
		return err
	}
	_, err := io.WriteString(w, escapeJSON(b.String()))
	return err
}

// escapeJSON writes what is no plain text as \u and digits, which means the same:
// encoding/json leaves the control characters beyond ASCII, some of which begin
// escape sequences, as they are.
func escapeJSON(s string) string {
	var out strings.Builder
	for _, r := range s {
		switch {
		case r == '\n' || unicode.IsPrint(r):
			out.WriteRune(r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&out, "\\u%04x\\u%04x", high, low)
		default:
			fmt.Fprintf(&out, "\\u%04x", r)
		}
	}
	return out.String()
}

// Executions prints a page of the list.
func Executions(w io.Writer, page *api.Executions) error {
	defer func() {
		for _, line := range unserved(page) {
			say(w, line)
		}
		if page.Loading {
			say(w, "the seeder is still reading the table: this is not all")
		}
		if page.SkippedItems > 0 {
			say(w, fmt.Sprintf("%d items of the table are no executions and were skipped; the seeder's log names them", page.SkippedItems))
		}
	}()
	if len(page.Executions) == 0 && page.Loading {
		return nil
	}
	if len(page.Executions) == 0 {
		return say(w, "nothing has been distributed yet; publish a build with: seeder publish build.zip")
	}
	var rows [][]string
	for _, e := range page.Executions {
		rows = append(rows, []string{
			e.ExecutionID, e.Key, command.FormatSize(e.Size), e.Status + mark(e.Priority),
			fmt.Sprintf("%d of %d", landed(&e), len(e.Destinations)), took(&e), e.StartTime.Local().Format(time.DateTime),
		})
	}
	// An id that is cut names nothing; the key does as well.
	if err := table(w, []column{
		{head: "EXECUTION", rank: 1}, {head: "KEY", least: 10}, {head: "SIZE", rank: 2}, {head: "STATUS"}, {head: "LANDED"},
		{head: "TOOK", rank: 3}, {head: "STARTED", rank: 4},
	}, rows); err != nil {
		return err
	}
	if page.Next == "" {
		return nil
	}
	const more = "more: seeder list"
	next := "--after " + command.Quote(command.Plain(page.Next))
	if width := widthOf(w); width > 0 && len(more)+1+len(next) > width {
		next = "\\\n  " + next // for a shell it is one line
	}
	_, err := fmt.Fprintln(w, more, next)
	return err
}

// unserved says which of the seeder's own destinations nobody takes builds to: those
// without an agent in one line, and the others with their reasons.
func unserved(page *api.Executions) (lines []string) {
	var none []string
	for _, u := range page.Unserved {
		if u.Error == "" {
			none = append(none, u.Bucket)
			continue
		}
		lines = append(lines, command.Plain(fmt.Sprintf("no agent serves %s: %s", u.Bucket, u.Error)))
	}
	if len(none) > 0 {
		lines = append([]string{command.Plain("no agent serves " + strings.Join(none, ", "))}, lines...)
	}
	return lines
}

func took(e *api.Execution) string {
	if e.CompletedAt == nil {
		return "-"
	}
	return e.CompletedAt.Sub(e.StartTime).Round(100 * time.Millisecond).String()
}

// Execution prints one execution and its destinations.
func Execution(w io.Writer, e *api.Execution) error {
	say(w, fmt.Sprintf("%s from %s, %s, execution %s: %s%s",
		command.Plain(e.Key), command.Plain(e.SourceBucket), command.FormatSize(e.Size), command.Plain(e.ExecutionID), phrase(e), mark(e.Priority)))
	if e.Error != "" {
		say(w, "error: "+command.Plain(e.Error))
	}
	return Arrivals(w, e)
}

// mark says of what has a priority that it does.
func mark(priority string) string {
	if priority == "" || priority == api.PriorityNormal {
		return ""
	}
	return ", " + command.Plain(priority) + " priority"
}

func phrase(e *api.Execution) string {
	status := command.Plain(e.Status)
	if e.Ended() {
		return status
	}
	if comes(e) {
		return fmt.Sprintf("%s, %s, %s", status, e.Phase, command.FormatSize(e.PulledBytes))
	}
	return status + ", " + command.Plain(e.Phase)
}

// comes reports whether a build is on its way to the seeder: from its bucket, or from
// whoever uploads it.
func comes(e *api.Execution) bool {
	return e.Phase == api.PhasePulling || e.Phase == api.PhaseUploading
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
			d.Bucket, dash(d.Region), stageOf(e, &d), verified(d.VerifiedBytes, e.Size, d.State),
			command.FormatSize(d.LandedBytes), seconds, dash(d.Agent), d.Error,
		})
	}
	return table(w, []column{
		{head: "BUCKET", least: 8}, {head: "REGION", least: 6, rank: 5}, {head: "STATE"}, {head: "VERIFIED"},
		{head: "LANDED", rank: 2}, {head: "TOOK", rank: 3}, {head: "AGENT", least: 8, rank: 4}, {note: true},
	}, rows)
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// verified is how far a destination is, which is all the way when it has landed.
func verified(n, of int64, state string) string {
	if state == api.StateLanded {
		return "100%"
	}
	return percent(n, of)
}

// AgentStatus prints what an agent knows.
func AgentStatus(w io.Writer, s *api.AgentStatus) error {
	for _, line := range serves(s) {
		say(w, line)
	}
	if limited := limited(&s.Limits); limited != "" {
		fmt.Fprintln(w, limited)
	}
	if s.TLS != nil {
		say(w, fmt.Sprintf("certificate of %s until %s, --tls %s", command.Plain(s.TLS.Identity), s.TLS.CertificateEnds.UTC().Format(time.DateOnly), command.Plain(s.TLS.Mode)))
	}
	fmt.Fprintln(w)
	var members [][]string
	for _, m := range s.Members {
		members = append(members, []string{m.Name, m.Role, dash(m.Region), m.Addr, m.State})
	}
	if err := table(w, []column{
		{head: "MEMBER", least: 10}, {head: "ROLE", rank: 2}, {head: "REGION", least: 6, rank: 1}, {head: "ADDR", least: 12, rank: 3}, {head: "STATE"},
	}, members); err != nil {
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
			b.Key, command.FormatSize(b.Size), stageOfBuild(&b) + mark(b.Priority), verified(b.VerifiedBytes, b.Size, b.State),
			command.FormatSize(b.LandedBytes), command.FormatSize(b.DownRate) + "/s", command.FormatSize(b.UpRate) + "/s",
			fmt.Sprint(len(b.Peers)), b.Error,
		})
	}
	return table(w, []column{
		{head: "BUILD", least: 10}, {head: "SIZE", rank: 5}, {head: "STATE"}, {head: "VERIFIED"}, {head: "LANDED", rank: 2},
		{head: "DOWN", rank: 3}, {head: "UP", rank: 4}, {head: "PEERS", rank: 1}, {note: true},
	}, builds)
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
	return table(w, []column{
		{head: "BAD PEER", least: 8}, {head: "REGION", least: 6, rank: 3}, {head: "ADDR", least: 12, rank: 2}, {head: "REASON", least: 7},
		{head: "SINCE", rank: 4}, {head: "LEFT ALONE UNTIL", rank: 1}, {head: "TIMES", rank: 5},
	}, rows)
}
