//go:build linux

package browser

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/chaos"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/web"
)

func TestMain(m *testing.M) { os.Exit(chaos.Main(m)) }

// link bounds what each member sends, in bytes/s, so that there is something to see.
const link = 2 << 20

// TestPublish goes the way of a person who publishes a build in the page and watches
// it arrive, while the seeder is killed and comes back.
func TestPublish(t *testing.T) {
	w := chaos.Start(t, chaos.Options{Agents: []int{1, 1, 1}, Seed: 1, Link: link})
	b := open(t, w.Seeder.URL)
	b.shows("#connection", "live")
	b.shows("#empty", "Nothing has been distributed yet")
	b.shows("#members", "seeder")
	b.keep("seeder-empty")

	file := filepath.Join(t.TempDir(), "release-1.0.zip")
	content := w.Expect("release-1.0.zip", 24<<20).Content()
	if err := os.WriteFile(file, content, 0o644); err != nil {
		t.Fatal(err)
	}
	b.do(chromedp.Click(chromedp.CSS("#publish")), chromedp.SetUploadFiles(chromedp.CSS("#p-file"), []string{file}))
	b.until("the key is the file's name", `document.querySelector("#p-key").value === "release-1.0.zip"`)
	b.keep("seeder-publish")
	b.do(chromedp.Click(chromedp.CSS("#p-send")))

	b.shows("#d-key", "release-1.0.zip")
	b.until("a bar moves", moved("0"))
	b.until("and moves on", moved("25"))
	b.until("the piece map has something", `document.querySelectorAll("#pieces li").length === 5`)
	b.until("somebody sends to somebody", `document.querySelectorAll("#graph path.moving").length > 0`)
	b.keep("seeder-distributing")

	b.away(true)
	w.Seeder.Kill()
	b.shows("#connection", "lost")
	b.until("what it shows is of before", `getComputedStyle(document.querySelector("main")).filter === "grayscale(1)"`)
	b.do(looks[2].set())
	b.until("and says so wherever the reader is", `
		scrollTo(0, document.body.scrollHeight),
		scrollY > 0 && document.querySelector("header").getBoundingClientRect().top === 0`)
	b.keep("seeder-lost")
	b.run(`window.here = true; document.querySelector("#search").focus()`)
	w.Seeder.Run()
	b.shows("#connection", "live")
	b.away(false)
	b.until("it is of now again", `getComputedStyle(document.querySelector("main")).filter === "none"`)

	b.shows("#d-status", "Completed in")
	b.shows("#d-status", "3 of 3 regions have it")
	b.shows("#list .state", "completed")
	if !eval[bool](b, `window.here && document.activeElement.id === "search"`) {
		t.Error("the page was loaded anew, or lost the focus")
	}
	b.keep("seeder-completed")
	if r := w.Record("release-1.0.zip"); r == nil || r.Status != ledger.Completed || r.Size != int64(len(content)) {
		t.Errorf("in the table: %+v", r)
	}
}

// moved is true when the first region's bar is past so many percent.
func moved(percent string) string {
	return fmt.Sprintf(`parseFloat(document.querySelector("#regions .bar .verified").style.width) > %s`, percent)
}

// TestFailures shows a region that cannot write, and what a person does about it.
func TestFailures(t *testing.T) {
	w := chaos.Start(t, chaos.Options{Agents: []int{1, 1}, Seed: 2})
	denied := w.Agents[1].Gate.Break(chaos.Rule{When: func(c chaos.Call) bool { return c.Writes() && c.S3() }, Do: chaos.AccessDenied})
	v := w.Put("denied.zip", 6<<20)
	w.Loosen(v.Key)
	id := w.Begun(v).ExecutionID
	b := open(t, w.Seeder.URL+"/#"+id)
	b.shows("#regions .state", "landed")
	b.shows("#failures", "AccessDenied")
	b.shows("#failures", "ried again")
	b.shows("#list .state", "trying again")
	b.keep("seeder-failing")

	b.do(chromedp.Click(chromedp.CSS("#cancel")))
	b.until("the question", `document.querySelector("#cancelling").open`)
	b.keep("seeder-cancel")
	b.do(chromedp.Click(chromedp.CSS("#c-yes")))
	b.shows("#d-answer", "Cancelled")
	b.shows("#d-status", "Cancelled: 1 of 2")
	b.shows("#failures", "cancelled by request")
	b.keep("seeder-failed")

	denied.Heal()
	b.do(chromedp.Click(chromedp.CSS("#retry")))
	b.shows("#d-status", "Completed in")
	b.shows("#no-failures", "None")

	// A region without an agent is said before anything is sent there.
	b.until("all are served", `document.querySelector("#unserved").hidden`)
	w.Agents[1].Terminate()
	b.shows("#unserved", "No agent serves "+w.Agents[1].Bucket)
	b.keep("seeder-unserved")
	w.Agents[1].Run()
	b.until("all are served again", `document.querySelector("#unserved").hidden`)
}

// TestOperatorToken: a seeder with a token takes nothing from the page without it, and
// the page asks for it once.
func TestOperatorToken(t *testing.T) {
	w := chaos.Start(t, chaos.Options{Agents: []int{1}, Seed: 6, OperatorToken: true})
	denied := w.Agents[0].Gate.Break(chaos.Rule{When: func(c chaos.Call) bool { return c.Writes() && c.S3() }, Do: chaos.AccessDenied})
	const wrong = "not-the-token-of-this-seeder"
	b := open(t, w.Seeder.URL)
	b.away(true) // the browser notes the answers 401
	give := func(token string) {
		t.Helper()
		b.until("the token is asked for", `document.querySelector("#asking").open`)
		b.types("#a-token", token)
		b.do(chromedp.Click(chromedp.CSS("#a-go")))
	}

	// More than the sockets between hold, so that the refusal comes while it is sent.
	file := filepath.Join(t.TempDir(), "release-1.0.zip")
	v := w.Expect("release-1.0.zip", 24<<20)
	w.Loosen(v.Key)
	if err := os.WriteFile(file, v.Content(), 0o644); err != nil {
		t.Fatal(err)
	}
	b.do(chromedp.Click(chromedp.CSS("#publish")), chromedp.SetUploadFiles(chromedp.CSS("#p-file"), []string{file}))
	b.until("the key is the file's name", `document.querySelector("#p-key").value === "release-1.0.zip"`)
	b.do(chromedp.Click(chromedp.CSS("#p-send")))
	b.shows("#a-why", "the operator token is missing")
	b.keep("seeder-token")
	give(wrong)
	b.shows("#a-why", "the operator token is wrong")
	if w.Record(v.Key) != nil {
		t.Error("an execution began without the token")
	}
	give(w.Seeder.Token)
	b.shows("#d-key", v.Key)
	b.shows("#failures", "AccessDenied")

	cancel := func() {
		t.Helper()
		b.do(chromedp.Click(chromedp.CSS("#cancel")))
		b.until("the question", `document.querySelector("#cancelling").open`)
		b.do(chromedp.Click(chromedp.CSS("#c-yes")))
	}
	b.run(`sessionStorage.setItem("operatorToken", "` + wrong + `")`)
	cancel()
	b.shows("#a-why", "the operator token is wrong")
	b.do(chromedp.Click(chromedp.CSS("#a-no")))
	b.shows("#d-answer", "the operator token is wrong")
	if r := w.Record(v.Key); r == nil || r.Status != ledger.InProgress {
		t.Errorf("cancelled with a wrong token: %+v", r)
	}
	cancel()
	give(w.Seeder.Token)
	b.shows("#d-answer", "Cancelled")

	denied.Heal()
	b.do(chromedp.Click(chromedp.CSS("#retry"))) // with the token that it has
	b.shows("#d-status", "Completed in")
}

// TestSearchAndNews: the search reaches everything, and what comes in does not move
// what is under the reader's hand.
func TestSearchAndNews(t *testing.T) {
	w := chaos.Start(t, chaos.Options{Agents: []int{1}, Seed: 3})
	for i := range 12 {
		w.Completed(w.Put(fmt.Sprintf("build-%02d.zip", i), 1000))
	}
	b := open(t, w.Seeder.URL)
	b.until("the list", `document.querySelectorAll("#list li").length === 12`)
	b.types("#search", "BUILD-07")
	b.until("one is left", `document.querySelectorAll("#list li").length === 1`)
	b.types("#search", "nothing-of-this")
	b.until("none is left", `!document.querySelector("#none").hidden`)
	b.types("#search", "u")
	b.until("all again", `document.querySelectorAll("#list li").length === 12`)

	// By the keyboard alone: from the search to the first of the list.
	b.do(chromedp.Focus(chromedp.CSS("#list a")))
	top := eval[string](b, `document.querySelector("#list .key").innerText`)
	w.Completed(w.Put("news-bu.zip", 1000))
	b.shows("#fresh", "1 new execution")
	if now := eval[string](b, `document.querySelector("#list .key").innerText`); now != top {
		t.Errorf("the list moved from %s to %s under the focus", top, now)
	}
	b.do(chromedp.KeyEvent("\r"))
	b.shows("#d-key", top)
	b.do(chromedp.Click(chromedp.CSS("#fresh")))
	b.until("it is let in", `document.querySelector("#list .key").innerText === "news-bu.zip"`)

	// A superseded execution leads to the one of today.
	old := w.Record("build-03.zip").ExecutionID
	w.Completed(w.Put("build-03.zip", 2000))
	b.away(true) // the browser notes the answers 410 and 404
	b.do(chromedp.Navigate("about:blank"), chromedp.Navigate(w.Seeder.URL+"/#"+old))
	b.shows("#d-facts", w.Record("build-03.zip").ExecutionID)
	b.do(chromedp.Navigate("about:blank"), chromedp.Navigate(w.Seeder.URL+"/#01ARZ3NDEKTSV4RRFFQ69G5FAV"))
	b.shows("#d-status", "no execution")
}

// TestPolling: where no stream comes through, the page asks.
func TestPolling(t *testing.T) {
	w := chaos.Start(t, chaos.Options{Agents: []int{1}, Seed: 4})
	seeder, err := url.Parse(w.Seeder.URL)
	if err != nil {
		t.Fatal(err)
	}
	through := httputil.NewSingleHostReverseProxy(seeder)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/events" {
			http.Error(w, "no streams here", http.StatusBadGateway)
			return
		}
		through.ServeHTTP(w, r)
	}))
	defer proxy.Close()
	b := open(t, "about:blank")
	b.away(true) // the refused streams are in the log
	b.do(chromedp.Navigate(proxy.URL))
	b.shows("#connection", "by asking")
	w.Completed(w.Put("build.zip", 1000))
	b.shows("#list .state", "completed")
}

// TestClosedReading: where reading asks for a token, the pages ask for it, once, and get all
// with it.
func TestClosedReading(t *testing.T) {
	w := chaos.Start(t, chaos.Options{Agents: []int{1}, Seed: 7})
	w.Completed(w.Put("build.zip", 1000))
	const token = "the-token-of-who-reads"
	for name, m := range map[string]*chaos.Member{"seeder": w.Seeder, "agent": w.Agents[0]} {
		to, err := url.Parse(m.URL)
		if err != nil {
			t.Fatal(err)
		}
		through := httputil.NewSingleHostReverseProxy(to)
		closed := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { // as --close-reading has it
			isFile := r.URL.Path == "/" || strings.HasSuffix(r.URL.Path, ".js") || strings.HasSuffix(r.URL.Path, ".css")
			if !isFile && r.Header.Get("Authorization") != "Bearer "+token {
				web.Write(w, http.StatusUnauthorized, api.Error{Error: "the operator token is missing"})
				return
			}
			through.ServeHTTP(w, r)
		}))
		defer closed.Close()
		b := open(t, "about:blank")
		b.away(true) // the browser notes the answers 401
		b.do(chromedp.Navigate(closed.URL))
		b.shows("#a-why", "the operator token is missing")
		b.types("#a-token", "not-the-token-of-who-reads")
		b.do(chromedp.Click(chromedp.CSS("#a-go")))
		b.until("it is asked for again", `document.querySelector("#asking").open`)
		b.types("#a-token", token)
		b.do(chromedp.Click(chromedp.CSS("#a-go")))
		b.shows("#connection", "by asking")
		if name == "agent" {
			b.shows("#builds", "build.zip")
			continue
		}
		b.shows("#list .state", "completed")
		b.do(chromedp.Click(chromedp.CSS("#list a")))
		b.shows("#d-status", "Completed in")
	}
}

// TestAgentPage shows an agent's builds with their peers, its cache and its members.
func TestAgentPage(t *testing.T) {
	w := chaos.Start(t, chaos.Options{Agents: []int{1, 1}, Seed: 5, Link: link})
	w.NeedsNetwork() // or the download is over before it is seen
	b := open(t, w.Agents[0].URL)
	b.shows("#empty", "No build has come by yet")
	b.keep("agent-empty")
	v := w.Put("build.zip", 16<<20)
	b.shows("#builds .state", api.StateDownloading)
	b.shows("#builds summary", "2 peers")
	b.run(`document.querySelector("#builds details").open = true`)
	b.keep("agent-downloading")
	w.Completed(v)
	b.shows("#builds .state", api.StateLanded)
	b.shows("#cache", "build.zip")
	b.shows("#cache", "100 %")
	b.keep("agent-landed")
}
