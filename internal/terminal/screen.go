package terminal

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/mattn/go-runewidth"
	"golang.org/x/term"
)

// The size of a terminal that does not say how large it is.
const defaultWidth, defaultHeight = 80, 24

// IsTerminal reports whether w is one on which lines can be drawn again. One that
// says it is dumb is treated as a pipe.
func IsTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && os.Getenv("TERM") != "dumb" && term.IsTerminal(int(f.Fd()))
}

// screen draws lines over those that it drew before.
type screen struct {
	w        io.Writer
	size     func() (width, height int)
	coloured bool
	drawn    []int // widths of the lines that stand there, in columns
}

// newScreen is for a w that IsTerminal. Colours are left out where NO_COLOR is set
// to anything.
func newScreen(w io.Writer) *screen {
	return &screen{
		w:        w,
		coloured: os.Getenv("NO_COLOR") == "",
		size: func() (int, int) {
			if f, ok := w.(*os.File); ok {
				if width, height, err := term.GetSize(int(f.Fd())); err == nil && width > 0 && height > 0 {
					return width, height
				}
			}
			return defaultWidth, defaultHeight
		},
	}
}

// draw puts a frame in the place of the last. It is one write, so that nothing is
// seen half.
func (s *screen) draw(f frame) {
	width, height := s.size()
	var out strings.Builder
	if up := s.above(width); up > 0 {
		fmt.Fprintf(&out, "\r\x1b[%dA", min(up, height-1))
	}
	s.drawn = s.drawn[:0]
	for _, line := range f.lines(width, height, s.coloured) {
		s.drawn = append(s.drawn, columns(line))
		out.WriteString(line + "\x1b[K\n") // clear what was longer
	}
	out.WriteString("\x1b[J") // and what was below
	io.WriteString(s.w, out.String())
}

// above is how many lines of the screen the last frame takes: where the terminal
// has become narrower, its lines are wrapped now.
func (s *screen) above(width int) int {
	n := 0
	for _, columns := range s.drawn {
		n += max(1, (columns+width-1)/width)
	}
	return n
}

// say writes text below the frame, in lines that fit: its parts beside each other,
// with commas, or where they are too long below each other.
func (s *screen) say(c colour, parts ...string) {
	if !s.coloured {
		c = uncoloured
	}
	width, _ := s.size()
	text := strings.Join(parts, ", ")
	if runewidth.StringWidth(text) >= width {
		for i, part := range parts {
			parts[i] = fold(part, width-1)
		}
		text = strings.Join(parts, ",\n")
	}
	fmt.Fprintln(s.w, c.paint(text))
	s.drawn = s.drawn[:0]
}

// columns is how wide a line is, without its colours.
func columns(line string) int {
	for _, c := range []string{string(green), string(red), "\x1b[0m"} {
		line = strings.ReplaceAll(line, c, "")
	}
	return runewidth.StringWidth(line)
}
