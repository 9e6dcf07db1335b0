package web

import (
	"io/fs"
	"net/http"
	"path"
)

// policy lets the page load nothing but what this process serves.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// page serves the page for people, of the role called name, and what it is made of.
func (m *Mux) page(name string) {
	m.public("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		serve(w, r, name+".html")
	})
	files, err := fs.ReadDir(embedded, "page")
	if err != nil {
		panic(err) // it is embedded
	}
	for _, f := range files {
		if ext := path.Ext(f.Name()); ext == ".js" || ext == ".css" {
			m.public("GET /"+f.Name(), func(w http.ResponseWriter, r *http.Request) {
				serve(w, r, f.Name())
			})
		}
	}
}

func serve(w http.ResponseWriter, r *http.Request, file string) {
	h := w.Header()
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-cache") // another version may be served next
	http.ServeFileFS(w, r, embedded, "page/"+file)
}
