// Command hello is the program inside testdata/builds/hello-1.0.0.zip: a small
// web service, so that what the demo distributes is a real build.
package main

import (
	"flag"
	"fmt"
	"log"
	"net/http"
)

func main() {
	addr := flag.String("listen", "127.0.0.1:8080", "address to serve on")
	flag.Parse()
	http.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "hello from a build that Landfall brought here")
	})
	log.Fatal(http.ListenAndServe(*addr, nil))
}
