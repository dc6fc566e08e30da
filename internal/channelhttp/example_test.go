package channelhttp

import "fmt"

// What may follow an attempt depends only on what the client knows itself.
func Example_decide() {
	cut := attempt{Left: true, Whole: true}
	fmt.Println(decide(cut) == outcomeUnknown)
	cut.Marked = true
	fmt.Println(decide(cut) == repeatAttempt)
	// Output:
	// true
	// true
}
