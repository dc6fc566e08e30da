// Package ohttp lets this project's one-off requests meet an OHTTP client and an
// OHTTP gateway of other people, both ways, in both forms of messages. It is a
// module of its own, so that they are no dependency of the product.
package ohttp
