//go:build linux

package browser

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	jsruntime "github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// timeout bounds every wait.
const timeout = 90 * time.Second

// root is the top of the source tree.
var root = func() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
}()

// lacks skips the test for want of a program, or of a file; in CI it fails.
func lacks(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is missing, and this is CI", what)
	}
	t.Skipf("%s is missing", what)
}

// tab is one page, open in a Chromium of its own.
type tab struct {
	*testing.T
	ctx context.Context

	mu sync.Mutex
	// wrong is what no page may do: errors on the console, exceptions, requests to
	// elsewhere.
	wrong []string
	// unreachable says that the server is away on purpose.
	unreachable bool
}

// open opens a page.
func open(t *testing.T, address string) *tab {
	t.Helper()
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		lacks(t, "chromium")
	}
	b := &tab{T: t}
	ctx, cancel := context.WithTimeout(t.Context(), 4*timeout)
	t.Cleanup(cancel)
	var closeTab context.CancelFunc
	b.ctx, closeTab = chromedp.NewContext(ctx, chromedp.WithListener(b.event), chromedp.WithAllocatorOptions(
		chromedp.ExecPath(chromium), chromedp.NoSandbox, chromedp.UserDataDir(t.TempDir()), chromedp.Flag("disable-dev-shm-usage", true)))
	t.Cleanup(closeTab)
	// The browser lives as long as the context of its first action.
	if err := chromedp.Do(b.ctx, call(network.Enable, network.EnableParams{}), call(log.Enable, cdp.Empty{})); err != nil {
		t.Fatal(err)
	}
	b.do(looks[0].set(), chromedp.Navigate(address))
	t.Cleanup(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, w := range b.wrong {
			t.Errorf("%s: %s", address, w)
		}
		// Before the directory of its data goes.
		if err := chromedp.Cancel(b.ctx); err != nil && !errors.Is(err, context.Canceled) {
			t.Logf("closing Chromium: %v", err)
		}
	})
	return b
}

// event looks for what no page may do.
func (b *tab) event(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *jsruntime.EventExceptionThrown:
		b.wrong = append(b.wrong, fmt.Sprintf("exception: %s %s:%d", e.ExceptionDetails.Text, e.ExceptionDetails.URL, e.ExceptionDetails.LineNumber))
	case *jsruntime.EventConsoleAPICalled:
		if e.Type == jsruntime.ConsoleAPICalledTypeError || e.Type == jsruntime.ConsoleAPICalledTypeWarning {
			b.wrong = append(b.wrong, fmt.Sprintf("console: %s %s", e.Type, e.Args[0].Value))
		}
	case *log.EventEntryAdded:
		if e.Entry.Level == log.EntryLevelError && !(b.unreachable && e.Entry.Source == log.EntrySourceNetwork) {
			b.wrong = append(b.wrong, fmt.Sprintf("log: %s %s", e.Entry.Text, e.Entry.URL))
		}
	case *network.EventRequestWillBeSent:
		u, err := url.Parse(e.Request.URL)
		if err != nil || u.Scheme == "data" {
			break
		}
		if ip, err := netip.ParseAddr(u.Hostname()); err != nil || !ip.IsLoopback() {
			b.wrong = append(b.wrong, "request to "+e.Request.URL)
		}
	}
}

// away tells whether the server is away on purpose, so that the browser may say so.
func (b *tab) away(is bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.unreachable = is
}

func (b *tab) do(actions ...chromedp.Action[chromedp.Void]) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, timeout)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		b.Fatalf("%v\nthe page says:\n%s", err, b.text("body"))
	}
}

// call is a command of the DevTools protocol.
func call[P any](c cdp.Command[P, cdp.Empty], params P) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, c, params)
		return err
	})
}

func get[V any](b *tab, action chromedp.Action[V]) V {
	b.Helper()
	v, err := chromedp.Run(b.ctx, action)
	if err != nil {
		b.Fatal(err)
	}
	return v
}

// eval is the value of an expression of JavaScript.
func eval[V any](b *tab, expression string) V {
	b.Helper()
	return get(b, chromedp.Evaluate[V](expression, chromedp.EvalAwaitPromise))
}

// run evaluates an expression for what it does.
func (b *tab) run(expression string) {
	b.Helper()
	eval[chromedp.Void](b, expression)
}

// text is what is to be read in an element; empty when there is none, or it is not
// shown.
func (b *tab) text(selector string) string {
	b.Helper()
	return eval[string](b, fmt.Sprintf(`document.querySelector(%q)?.innerText ?? ""`, selector))
}

// until waits for an expression to be true.
func (b *tab) until(what, expression string) {
	b.Helper()
	poll := chromedp.Poll[bool](expression, chromedp.WithPollingTimeout(timeout), chromedp.WithPollingInterval(50*time.Millisecond))
	_, err := chromedp.Run(b.ctx, poll)
	for begun, replaced := time.Now(), (*cdproto.Error)(nil); errors.As(err, &replaced) && time.Since(begun) < timeout; {
		_, err = chromedp.Run(b.ctx, poll) // in the page that has taken the place of the one that was asked
	}
	if err != nil {
		b.Fatalf("%s: %v\nthe page says:\n%s", what, err, b.text("body"))
	}
}

// shows waits until an element's text contains a part.
func (b *tab) shows(selector, part string) {
	b.Helper()
	b.until(fmt.Sprintf("%s shows %q", selector, part),
		fmt.Sprintf(`[...document.querySelectorAll(%q)].some((e) => e.checkVisibility() && e.innerText.includes(%q))`, selector, part))
}

// types types text into an input, in place of what is there.
func (b *tab) types(selector, text string) {
	b.Helper()
	b.run(fmt.Sprintf(`document.querySelector(%q).select()`, selector))
	b.do(chromedp.SendKeys(chromedp.CSS(selector), text))
}

// look is one way to look at a page.
type look struct {
	name, scheme  string
	width, height int64
}

var looks = []look{
	{"wide-light", "light", 1440, 900},
	{"wide-dark", "dark", 1440, 900},
	{"narrow-light", "light", 360, 740},
	{"narrow-dark", "dark", 360, 740},
}

func (l look) set() chromedp.Action[chromedp.Void] {
	return chromedp.Steps(
		call(emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: l.scheme}},
		}),
		chromedp.EmulateViewport(l.width, l.height),
	)
}

// keep leaves screenshots of the page as it is, in every look, and audits each.
func (b *tab) keep(state string) {
	b.Helper()
	dir := filepath.Join(root, "bin", "screenshots")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		b.Fatal(err)
	}
	for _, l := range looks {
		b.do(l.set())
		picture := get(b, chromedp.FullScreenshot(100))
		if err := os.WriteFile(filepath.Join(dir, state+"-"+l.name+".png"), picture, 0o644); err != nil {
			b.Fatal(err)
		}
		if over := eval[int](b, `document.documentElement.scrollWidth - innerWidth`); over > 0 {
			b.Errorf("%s, %s: the page is %d pixels wider than the window", state, l.name, over)
		}
		b.audit(state + ", " + l.name)
	}
	b.do(looks[0].set())
}

// violation is what axe-core says of the page.
type violation struct {
	ID, Impact, Help string
	Nodes            []struct {
		Target         []any
		FailureSummary string
	}
}

// audit runs axe-core over the page, where LANDFALL_TEST_AXE names its axe.min.js.
func (b *tab) audit(what string) {
	b.Helper()
	source := axe()
	if source == "" {
		if os.Getenv("CI") == "true" {
			b.Fatal("LANDFALL_TEST_AXE names no axe.min.js, and this is CI")
		}
		return
	}
	if !eval[bool](b, `"axe" in window`) {
		b.run(source)
	}
	found := eval[string](b, `axe.run({ resultTypes: ["violations"] }).then((r) => JSON.stringify(r.violations))`)
	var violations []violation
	if err := json.Unmarshal([]byte(found), &violations); err != nil {
		b.Fatal(err)
	}
	for _, v := range violations {
		said := fmt.Sprintf("axe, %s: %s (%s): %s", what, v.ID, v.Impact, v.Help)
		for _, n := range v.Nodes[:min(3, len(v.Nodes))] {
			said += fmt.Sprintf("\n  %v: %s", n.Target, strings.ReplaceAll(n.FailureSummary, "\n", " "))
		}
		if slices.Contains([]string{"serious", "critical"}, v.Impact) {
			b.Error(said)
		} else {
			b.Log(said)
		}
	}
}

var axe = sync.OnceValue(func() string {
	b, err := os.ReadFile(os.Getenv("LANDFALL_TEST_AXE"))
	if err != nil {
		return ""
	}
	return string(b)
})
