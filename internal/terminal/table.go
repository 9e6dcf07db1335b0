package terminal

import (
	"io"
	"os"
	"strings"

	"github.com/mattn/go-runewidth"
	"golang.org/x/term"

	"github.com/landfall-dist/landfall/internal/command"
)

// column is one of a table.
type column struct {
	head string
	// least is how narrow, in columns of the screen, its cells may become where there
	// is no room; 0 for not at all: a number without its end is another number.
	least int
	// rank says which columns are left out where even that is too much, the highest
	// first; 0 for never.
	rank int
	// note columns have their cells on lines of their own, below the row, where the
	// table does not fit.
	note bool
}

// gap is between the columns.
const gap = 2

// widthOf is how many columns a line on w may take, 0 for any number: a pipe gets
// everything. It is one less than the terminal has, for a full line makes some wrap.
func widthOf(w io.Writer) int {
	if !IsTerminal(w) {
		return 0
	}
	if width, _, err := term.GetSize(int(w.(*os.File).Fd())); err == nil && width > 0 {
		return max(width-1, 1)
	}
	return defaultWidth - 1
}

// table prints rows under their columns' heads, on a terminal in lines that fit.
func table(w io.Writer, columns []column, rows [][]string) error {
	return tableIn(w, widthOf(w), columns, rows)
}

// tableIn is table in lines of at most so many columns, 0 for any number.
func tableIn(w io.Writer, width int, columns []column, rows [][]string) error {
	var heads []string
	for _, c := range columns {
		heads = append(heads, c.head)
	}
	lines := [][]string{heads}
	for _, row := range rows {
		var plain []string
		for _, cell := range row {
			plain = append(plain, command.Plain(cell))
		}
		lines = append(lines, plain)
	}
	widths, notes := fit(columns, natural(columns, lines), width)
	var out strings.Builder
	for _, line := range lines {
		var cells, below []string
		for i, cell := range line {
			switch {
			case notes && columns[i].note:
				if cell != "" {
					below = append(below, "  "+cutMiddle(cell, max(width-gap, 1)))
				}
			case widths[i] > 0:
				cells = append(cells, runewidth.FillRight(cutMiddle(cell, widths[i]), widths[i]))
			}
		}
		text := strings.TrimRight(strings.Join(cells, strings.Repeat(" ", gap)), " ")
		if width > 0 {
			text = cut(text, width)
		}
		out.WriteString(text + "\n")
		for _, note := range below {
			out.WriteString(note + "\n")
		}
	}
	_, err := io.WriteString(w, out.String())
	return err
}

// natural is how wide each column is when nothing is cut.
func natural(columns []column, lines [][]string) []int {
	widths := make([]int, len(columns))
	for _, line := range lines {
		for i, cell := range line {
			widths[i] = max(widths[i], runewidth.StringWidth(cell))
		}
	}
	return widths
}

// fit makes the columns' widths fit into width; those left out are 0. Notes are told to
// go below their rows when there is no room for them beside these.
func fit(columns []column, widths []int, width int) (fitting []int, notes bool) {
	if width == 0 || total(widths) <= width {
		return widths, false
	}
	for i, c := range columns {
		if c.note && widths[i] > 0 {
			widths[i], notes = 0, true
		}
	}
	for total(narrowest(columns, widths)) > width {
		last := -1
		for i, c := range columns {
			if widths[i] > 0 && c.rank > 0 && (last < 0 || c.rank > columns[last].rank) {
				last = i
			}
		}
		if last < 0 {
			break // hardly a terminal: its lines are cut
		}
		widths[last] = 0
	}
	// The widest that may become narrower gives way, so that what is short stays whole.
	for total(widths) > width {
		widest := -1
		for i, c := range columns {
			if c.least > 0 && widths[i] > c.least && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			break
		}
		widths[widest]--
	}
	return widths, notes
}

// narrowest is the widths that columns have when each has given way as far as it can.
func narrowest(columns []column, widths []int) []int {
	out := make([]int, len(widths))
	for i, n := range widths {
		out[i] = n
		if least := columns[i].least; least > 0 {
			out[i] = min(n, least)
		}
	}
	return out
}

// total is how wide a line with these columns is.
func total(widths []int) int {
	n, shown := 0, 0
	for _, w := range widths {
		if w > 0 {
			n += w
			shown++
		}
	}
	return n + gap*max(shown-1, 0)
}

// say prints a line; on a terminal it is broken between words, and what is still longer
// is shortened in its middle.
func say(w io.Writer, text string) error { return sayIn(w, widthOf(w), text) }

// sayIn is say in lines of at most so many columns, 0 for any number.
func sayIn(w io.Writer, width int, text string) error {
	if width > 0 && runewidth.StringWidth(text) > width {
		words := strings.Fields(text)
		for i, word := range words {
			words[i] = cutMiddle(word, width)
		}
		text = fold(strings.Join(words, " "), width)
	}
	_, err := io.WriteString(w, text+"\n")
	return err
}
