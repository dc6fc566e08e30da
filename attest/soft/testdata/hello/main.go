// Hello is a small program without libraries: it prints its arguments and its
// environment, one quoted string a line.
package main

import (
	"fmt"
	"os"
)

func main() {
	for _, s := range append(os.Args, os.Environ()...) {
		fmt.Printf("%q\n", s)
	}
}
