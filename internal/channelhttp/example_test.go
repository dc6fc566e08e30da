package channelhttp_test

import (
	"fmt"

	"github.com/cohort-tee/cohort/internal/channelhttp"
)

// What may follow an attempt depends only on what the client knows itself.
func ExampleDecide() {
	cut := channelhttp.Attempt{Left: true, Whole: true}
	fmt.Println(channelhttp.Decide(cut) == channelhttp.OutcomeUnknown)
	cut.Marked = true
	fmt.Println(channelhttp.Decide(cut) == channelhttp.Repeat)
	// Output:
	// true
	// true
}
