// Package closed closes the set of appraisers. An appraiser decides which evidence
// an Attestation Result is made of, so only packages below attest are appraisers:
// they alone can import this package, and without it nothing can state about itself that
// it is one.
package closed

// Appraiser is an appraiser that a package below attest vouches for. The zero
// Appraiser is none.
type Appraiser struct{ genuine any }

// VouchFor vouches for an appraiser. A type that wraps another calls it only where the
// wrapper itself is the appraiser.
func VouchFor(appraiser any) Appraiser { return Appraiser{appraiser} }

// Genuine is what was vouched for, or nil.
func (a Appraiser) Genuine() any { return a.genuine }
