// Package terminaltest runs a program in a pseudo-terminal and keeps what a person
// would see there: the screen, not the bytes.
package terminaltest

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/mattn/go-runewidth"
)

// Timeout bounds every wait.
const Timeout = 60 * time.Second

// Screen is a terminal of some width that never ends below. It knows the escape
// sequences that Landfall writes; any other is kept as Unknown. It may be used by
// several goroutines.
type Screen struct {
	width int

	mu      sync.Mutex
	lines   [][]rune
	row     int
	column  int
	rest    string // of a sequence that has not come whole
	raw     strings.Builder
	wrapped []string
	unknown []string
	wrote   chan struct{} // closed at the next write
}

// NewScreen makes an empty one, width columns wide.
func NewScreen(width int) *Screen {
	return &Screen{width: width, lines: [][]rune{nil}, wrote: make(chan struct{})}
}

var sequence = regexp.MustCompile(`^\x1b\[([?0-9;]*)([A-Za-z])`)

// Write draws what a program wrote.
func (s *Screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.raw.Write(p)
	text := s.rest + string(p)
	s.rest = ""
	for text != "" {
		if text[0] == '\x1b' {
			m := sequence.FindStringSubmatch(text)
			if m == nil && len(text) < 16 {
				s.rest = text
				break
			}
			if m == nil {
				s.unknown = append(s.unknown, text[:16])
				text = text[1:]
				continue
			}
			s.control(m[0], m[1], m[2])
			text = text[len(m[0]):]
			continue
		}
		r := []rune(text)[0]
		if r == '\uFFFD' && !strings.HasPrefix(text, "\uFFFD") && len(text) < 4 {
			s.rest = text // a character that has not come whole
			break
		}
		s.put(r)
		text = text[len(string(r)):]
	}
	close(s.wrote)
	s.wrote = make(chan struct{})
	return len(p), nil
}

func (s *Screen) control(all, argument, kind string) {
	n, _ := strconv.Atoi(argument)
	switch kind {
	case "A":
		s.row = max(s.row-max(n, 1), 0)
	case "K":
		s.lines[s.row] = s.lines[s.row][:min(s.column, len(s.lines[s.row]))]
	case "J":
		s.lines[s.row] = s.lines[s.row][:min(s.column, len(s.lines[s.row]))]
		s.lines = s.lines[:s.row+1]
	case "m":
	default:
		s.unknown = append(s.unknown, all)
	}
}

func (s *Screen) put(r rune) {
	switch r {
	case '\r':
		s.column = 0
	case '\n':
		s.down()
	case '\a':
	default:
		n := runewidth.RuneWidth(r)
		if s.column+n > s.width {
			s.wrapped = append(s.wrapped, string(s.lines[s.row]))
			s.down()
			s.column = 0
		}
		line := s.lines[s.row]
		for len(line) < s.column {
			line = append(line, ' ')
		}
		s.lines[s.row] = append(line[:s.column], append([]rune{r}, line[min(s.column+1, len(line)):]...)...)
		s.column += n
	}
}

// down goes to the next line; the column stays, as without ONLCR.
func (s *Screen) down() {
	s.row++
	for len(s.lines) <= s.row {
		s.lines = append(s.lines, nil)
	}
}

// String is what is seen, without the spaces at the ends of lines.
func (s *Screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.string()
}

func (s *Screen) string() string {
	var out strings.Builder
	for _, l := range s.lines {
		out.WriteString(strings.TrimRight(string(l), " ") + "\n")
	}
	return strings.TrimRight(out.String(), "\n") + "\n"
}

// Raw is every byte that was written.
func (s *Screen) Raw() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.raw.String()
}

// Wrapped are the lines that were longer than the screen is wide.
func (s *Screen) Wrapped() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wrapped
}

// Unknown are the escape sequences that Landfall does not write itself.
func (s *Screen) Unknown() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unknown
}

// Program runs in a pseudo-terminal.
type Program struct {
	*Screen
	t    testing.TB
	cmd  *exec.Cmd
	tty  *os.File
	read chan struct{} // closed when all it wrote is on the screen
}

// Start runs a command in a terminal of width columns and 24 lines until it, or the
// test, ends.
func Start(t testing.TB, width int, cmd *exec.Cmd) *Program {
	t.Helper()
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Cols: uint16(width), Rows: 24})
	if err != nil {
		t.Fatal(err)
	}
	p := &Program{Screen: NewScreen(width), t: t, cmd: cmd, tty: tty, read: make(chan struct{})}
	go func() {
		defer close(p.read)
		io.Copy(p.Screen, tty) //nolint:errcheck // EIO is how a terminal ends
	}()
	t.Cleanup(func() {
		cmd.Process.Kill() // nothing, once it has ended
		tty.Close()
		<-p.read
	})
	return p
}

// Type sends keys.
func (p *Program) Type(keys string) {
	p.t.Helper()
	if _, err := io.WriteString(p.tty, keys); err != nil {
		p.t.Fatal(err)
	}
}

// Until waits until the screen matches an expression.
func (p *Program) Until(expression string) {
	p.t.Helper()
	re := regexp.MustCompile(expression)
	deadline := time.After(Timeout)
	for {
		p.mu.Lock()
		found, wrote := re.MatchString(p.string()), p.wrote
		p.mu.Unlock()
		if found {
			return
		}
		select {
		case <-wrote:
		case <-deadline:
			p.t.Fatalf("not in %s: %s on\n%s", Timeout, expression, p)
		}
	}
}

// Wait waits for the end, and returns the exit status.
func (p *Program) Wait() int {
	p.t.Helper()
	deadline := time.AfterFunc(Timeout, func() { p.cmd.Process.Kill() })
	defer deadline.Stop()
	<-p.read
	err := p.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		p.t.Fatal(err)
	}
	return p.cmd.ProcessState.ExitCode()
}
