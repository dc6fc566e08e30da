// Echo is the program whose units the foreign client asks: it answers with what
// it was sent.
package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
)

func main() {
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return // the agent tells
		}
		fmt.Fprintf(w, "%s %s ", r.Method, r.URL.Path)
		_, _ = w.Write(b)
	})))
}
