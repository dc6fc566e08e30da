// Package queue has a heap whose items can be removed or moved from any place: the item that
// expires or yields first is first. It is not safe for concurrent use.
package queue

import "container/heap"

// Queue is a heap whose least item is first. Its items store their places, so that any item
// can be removed or moved. The zero queue has no order; [New] makes one.
type Queue[T any] struct {
	items []T
	less  func(a, b T) bool
	place func(T) *int // where an item keeps its place in this queue
}

// New makes a queue with an order, and the place that each item stores.
func New[T any](less func(a, b T) bool, place func(T) *int) Queue[T] {
	return Queue[T]{less: less, place: place}
}

// Len, Less, Swap, Push and Pop make the queue a [heap.Interface].
func (q *Queue[T]) Len() int           { return len(q.items) }
func (q *Queue[T]) Less(i, j int) bool { return q.less(q.items[i], q.items[j]) }
func (q *Queue[T]) Swap(i, j int) {
	q.items[i], q.items[j] = q.items[j], q.items[i]
	*q.place(q.items[i]), *q.place(q.items[j]) = i, j
}

// Push appends an item; callers use Add.
func (q *Queue[T]) Push(x any) {
	*q.place(x.(T)) = len(q.items)
	q.items = append(q.items, x.(T))
}

// Pop removes the last item; callers use Remove.
func (q *Queue[T]) Pop() any {
	var none T
	last := len(q.items) - 1
	x := q.items[last]
	q.items[last] = none
	q.items = q.items[:last]
	return x
}

// First returns the least item; ok is false if there is none.
func (q *Queue[T]) First() (x T, ok bool) {
	if len(q.items) == 0 {
		return x, false
	}
	return q.items[0], true
}

// Add adds an item, Remove removes it, and Moved restores the order after it changed.
func (q *Queue[T]) Add(x T)    { heap.Push(q, x) }
func (q *Queue[T]) Remove(x T) { heap.Remove(q, *q.place(x)) }
func (q *Queue[T]) Moved(x T)  { heap.Fix(q, *q.place(x)) }
