package channelhttp

import "fmt"

// Whether an attempt may be repeated depends only on what the client itself knows.
func Example_decide() {
	cut := attempt{Left: true, Whole: true}
	fmt.Println(decide(cut) == outcomeUnknown)
	cut.Marked = true
	fmt.Println(decide(cut) == repeatAttempt)
	// Output:
	// true
	// true
}
