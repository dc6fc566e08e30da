package history

// UnverifiedSteps is the number of steps that a head claims.
func UnverifiedSteps(b []byte) int { return unverifiedSteps(b) }
