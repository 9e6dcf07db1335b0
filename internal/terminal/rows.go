package terminal

import (
	"fmt"
	"strings"
	"time"

	"github.com/mattn/go-runewidth"

	"github.com/landfall-dist/landfall/internal/command"
)

// colour is one of the two that mean something here.
type colour string

const (
	uncoloured colour = ""
	green      colour = "\x1b[32m" // landed
	red        colour = "\x1b[31m" // failed
)

func (c colour) paint(s string) string {
	if c == uncoloured || s == "" {
		return s
	}
	return string(c) + s + "\x1b[0m"
}

// row is one bar and what stands beside it.
type row struct {
	name        string
	done, total int64
	// state is a word; the rate, bytes/s of the build, and the time left stand
	// behind it where they are known.
	state string
	rate  float64
	left  time.Duration
	// text takes the place of these three, and short where there is no room.
	text, short string
	colour      colour
	// fixed names are not shortened by what the others have in common.
	fixed bool
	// settled rows are the first to go when there are more than lines.
	settled bool
}

// frame is what is on the screen at one time.
type frame struct {
	head []string
	rows []row
	foot string
}

// Columns from which on there is room for all, and for all but the state. A
// bar shorter than minBar says nothing, and a name shorter than minName is none.
const (
	roomForAll   = 72
	roomForRates = 52
	minBar       = 6
	maxBar       = 40
	minName      = 8
)

// lines lays a frame out for a screen. No line is wider than width-1 columns, for a
// full line makes some terminals wrap, and there are at most height-1, so that
// the screen does not scroll.
func (f frame) lines(width, height int, coloured bool) []string {
	width, height = max(width-1, 1), max(height-1, 1)
	var out []string
	for _, h := range f.head {
		out = append(out, cut(h, width))
	}
	rows, hidden := choose(f.rows, height-len(out)-1)
	l, names := layoutOf(width, rows)
	for i, r := range rows {
		out = append(out, l.line(names[i], r, coloured))
	}
	if hidden > 0 {
		out = append(out, cut(fmt.Sprintf("… and %d more", hidden), width))
	}
	if f.foot != "" {
		out = append(out, cut(f.foot, width))
	}
	return out[:min(len(out), height)]
}

// choose leaves out rows when there is no room for all, first those that nothing
// more happens to.
func choose(rows []row, room int) (chosen []row, hidden int) {
	if len(rows) <= room {
		return rows, 0
	}
	hidden = len(rows) - max(room-1, 1) // a line says how many more there are
	leave := make([]bool, len(rows))
	left := 0
	for _, settled := range []bool{true, false} {
		for i := len(rows) - 1; i >= 0 && left < hidden; i-- {
			if rows[i].settled == settled {
				leave[i] = true
				left++
			}
		}
	}
	for i, r := range rows {
		if !leave[i] {
			chosen = append(chosen, r)
		}
	}
	return chosen, hidden
}

// layout is the widths of a frame's columns.
type layout struct {
	width, name, bar, info int
}

const percentWidth = 4

// layoutOf makes the layout of rows, and their names as they fit into it.
func layoutOf(width int, rows []row) (l layout, names []string) {
	l = layout{width: width}
	switch {
	case width >= roomForAll:
		l.info = len("downloading 1023.9 MiB/s 59m59s left")
	case width >= roomForRates:
		l.info = len("1023.9 MiB/s 59m59s left")
	default:
		l.info = len("1023M/s 59m59s")
	}
	room := width - l.info - percentWidth - 3 // and the spaces between
	most := room - max(minBar, room/3)
	if most < minName {
		// Hardly a terminal: the name and how far it is.
		l.info, room, most = 0, 0, max(width-percentWidth-1, 0)
	}
	names, l.name = shorten(rows, most)
	l.bar = min(max(room-l.name, 0), maxBar)
	return l, names
}

// shorten returns the rows' names in at most so many columns, and the columns of
// the longest. What all of them end or begin with tells nobody anything, so it
// goes first: region-a-builds and region-b-builds are region-a and region-b.
func shorten(rows []row, most int) (names []string, longest int) {
	var variable []int
	for i, r := range rows {
		names = append(names, command.Plain(r.name))
		longest = max(longest, runewidth.StringWidth(names[i]))
		if !r.fixed {
			variable = append(variable, i)
		}
	}
	for _, common := range []func([]string) []string{withoutCommonEnd, withoutCommonBeginning} {
		if longest <= most || len(variable) < 2 {
			break
		}
		var some []string
		for _, i := range variable {
			some = append(some, names[i])
		}
		for i, name := range common(some) {
			names[variable[i]] = name
		}
		longest = 0
		for _, name := range names {
			longest = max(longest, runewidth.StringWidth(name))
		}
	}
	for i, name := range names {
		names[i] = cutMiddle(name, most)
	}
	return names, min(longest, most)
}

// withoutCommonEnd takes from names the words, with a hyphen before each, that all
// end with; something of each is left.
func withoutCommonEnd(names []string) []string {
	for {
		i := strings.LastIndexByte(names[0], '-')
		if i <= 0 {
			return names
		}
		end := names[0][i:]
		var shorter []string
		for _, name := range names {
			short, ok := strings.CutSuffix(name, end)
			if !ok || short == "" {
				return names
			}
			shorter = append(shorter, short)
		}
		names = shorter
	}
}

// withoutCommonBeginning is the same for the words, with a hyphen behind each, that
// all begin with.
func withoutCommonBeginning(names []string) []string {
	for {
		i := strings.IndexByte(names[0], '-')
		if i < 0 {
			return names
		}
		beginning := names[0][:i+1]
		var shorter []string
		for _, name := range names {
			short, ok := strings.CutPrefix(name, beginning)
			if !ok || short == "" {
				return names
			}
			shorter = append(shorter, short)
		}
		names = shorter
	}
}

func (l layout) line(name string, r row, coloured bool) string {
	parts := []string{runewidth.FillRight(name, l.name)}
	if l.bar > 0 {
		parts = append(parts, bar(r.done, r.total, l.bar))
	}
	parts = append(parts, fmt.Sprintf("%*s", percentWidth, percent(r.done, r.total)))
	line := cut(strings.Join(parts, " "), l.width)
	info := strings.TrimRight(cut(l.describe(r), l.info), " ")
	if info == "" {
		return line
	}
	if coloured {
		info = r.colour.paint(info)
	}
	return line + " " + info
}

// describe is what stands behind the bar.
func (l layout) describe(r row) string {
	if r.text != "" {
		if r.short != "" && runewidth.StringWidth(r.text) > l.info {
			return r.short
		}
		return r.text
	}
	rate, left := "", ""
	if r.rate >= 1 {
		rate = command.FormatSize(int64(r.rate)) + "/s"
	}
	if r.left > 0 {
		left = formatTime(r.left) + " left"
	}
	switch {
	case l.width >= roomForAll:
		return fmt.Sprintf("%-11s %12s %11s", r.state, rate, left)
	case rate == "":
		return r.state
	case l.width >= roomForRates:
		return fmt.Sprintf("%12s %11s", rate, left)
	default:
		return fmt.Sprintf("%7s %6s", shortRate(r.rate), strings.TrimSuffix(left, " left"))
	}
}

// shortRate is a rate in at most seven columns.
func shortRate(rate float64) string {
	size := command.FormatSize(int64(rate))
	number, unit, _ := strings.Cut(size, " ")
	if len(number) > 3 { // 12.3 is 12, 1.2 stays
		number, _, _ = strings.Cut(number, ".")
	}
	return number + unit[:1] + "/s"
}

// bar draws how much is done. It is ASCII: in a terminal that knows nothing else,
// or draws wide what is ambiguous, it is as long as it should be.
func bar(done, total int64, width int) string {
	inner := width - 2
	n := 0
	if total > 0 {
		n = int(float64(inner) * min(float64(done)/float64(total), 1))
	}
	drawn := strings.Repeat("=", n)
	if n > 0 && n < inner {
		drawn = drawn[1:] + ">"
	}
	return "[" + drawn + strings.Repeat(" ", inner-n) + "]"
}

func percent(n, of int64) string {
	if of <= 0 {
		return "0%"
	}
	return fmt.Sprintf("%d%%", int(100*min(float64(n)/float64(of), 1)))
}

// cut shortens text to a width in columns.
func cut(s string, width int) string {
	if width <= 0 {
		return ""
	}
	return runewidth.Truncate(s, width, "…")
}

// cutMiddle shortens a name in its middle: names of buckets often differ at their
// end.
func cutMiddle(s string, width int) string {
	all := runewidth.StringWidth(s)
	if all <= width {
		return s
	}
	if width < 3 {
		return cut(s, width)
	}
	tail := (width - 1) / 2
	return runewidth.Truncate(s, width-1-tail, "") + "…" + runewidth.TruncateLeft(s, all-tail, "")
}

// fold breaks text between words into lines of at most width columns. A word that is
// longer has a line of its own.
func fold(s string, width int) string {
	var out strings.Builder
	at := 0
	for i, word := range strings.Fields(s) {
		n := runewidth.StringWidth(word)
		switch {
		case i == 0:
		case at+1+n > width:
			out.WriteByte('\n')
			at = 0
		default:
			out.WriteByte(' ')
			at++
		}
		out.WriteString(word)
		at += n
	}
	return out.String()
}
