package seeder

import (
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestWhenRead asks just after a start for what the tables know: the answer waits until they
// were tried, or long enough.
func TestWhenRead(t *testing.T) {
	w := newFleetWorld(t, 0)
	w.s.reading.wait(t.Context())
	// ask begins a request; the answer's code comes when there is one.
	ask := func(pattern, body string) <-chan int {
		method, path, _ := strings.Cut(strings.NewReplacer("{id}", "none", "{name}", "none").Replace(pattern), " ")
		answered := make(chan int, 1)
		_, mux, _ := w.s.mux()
		go func() {
			answer, r := httptest.NewRecorder(), httptest.NewRequest(method, path, strings.NewReader(body))
			r.Header.Set("Content-Type", "application/json")
			mux.ServeHTTP(answer, r)
			answered <- answer.Code
		}()
		return answered
	}
	bodies := map[string]string{
		"POST /services/{name}/deployments": `{"key":"none.zip"}`,
		"POST /services/{name}/skip":        `{"region":"none"}`,
		"POST /services/{name}/hold":        `{"hosts":["none"]}`,
		"POST /services/{name}/release":     `{"hosts":["none"]}`,
		"POST /recalls":                     `{"builds":["none.zip"]}`,
	}
	for pattern := range roles {
		if !strings.Contains(pattern, "/{") && !strings.HasSuffix(pattern, " /recalls") {
			continue // makes something new, or says itself that it is not whole
		}
		t.Run(strings.ReplaceAll(pattern, "/", " "), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w.s.reading = newFirstReading()
				begun := time.Now()
				answered := ask(pattern, bodies[pattern])
				synctest.Wait()
				w.s.reading.executions.done()
				synctest.Wait()
				select {
				case code := <-answered:
					t.Fatalf("answered %d before the tables of services were tried", code)
				default:
				}
				w.s.reading.services.done()
				<-answered
				if waited := time.Since(begun); waited != 0 {
					t.Errorf("answered after %s", waited)
				}

				w.s.reading = newFirstReading()
				begun = time.Now()
				<-ask(pattern, bodies[pattern])
				if waited := time.Since(begun); waited != answerWithin {
					t.Errorf("without an answer of the tables it waits for %s, not %s", waited, answerWithin)
				}
			})
		})
	}
	for pattern, body := range map[string]string{
		"POST /services/{name}/deployments": `{"key":"none.zip","withoutTable":true}`,
		"POST /services/{name}/rollback":    `{"withoutTable":true}`,
		"GET /services":                     "",
		"GET /executions":                   "",
	} {
		synctest.Test(t, func(t *testing.T) {
			w.s.reading = newFirstReading()
			begun := time.Now()
			<-ask(pattern, body)
			if waited := time.Since(begun); waited != 0 {
				t.Errorf("%s %s waited for %s", pattern, body, waited)
			}
		})
	}
}
