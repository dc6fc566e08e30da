package channel

import "container/heap"

// queue is a heap whose least item is first. Its items know their places, so that
// one can be removed or moved from wherever it is. The zero queue has no order;
// [newQueue] makes one.
type queue[T any] struct {
	items []T
	less  func(a, b T) bool
	place func(T) *int // where an item keeps its place in this queue
}

func newQueue[T any](less func(a, b T) bool, place func(T) *int) queue[T] {
	return queue[T]{less: less, place: place}
}

// Len, Less, Swap, Push and Pop make the queue a [heap.Interface].
func (q *queue[T]) Len() int           { return len(q.items) }
func (q *queue[T]) Less(i, j int) bool { return q.less(q.items[i], q.items[j]) }
func (q *queue[T]) Swap(i, j int) {
	q.items[i], q.items[j] = q.items[j], q.items[i]
	*q.place(q.items[i]), *q.place(q.items[j]) = i, j
}

// Push appends an item; callers use add.
func (q *queue[T]) Push(x any) {
	*q.place(x.(T)) = len(q.items)
	q.items = append(q.items, x.(T))
}

// Pop removes the last item; callers use remove.
func (q *queue[T]) Pop() any {
	var none T
	last := len(q.items) - 1
	x := q.items[last]
	q.items[last] = none
	q.items = q.items[:last]
	return x
}

// first is the least item; ok is false when there is none.
func (q *queue[T]) first() (x T, ok bool) {
	if len(q.items) == 0 {
		return x, false
	}
	return q.items[0], true
}

func (q *queue[T]) add(x T)    { heap.Push(q, x) }
func (q *queue[T]) remove(x T) { heap.Remove(q, *q.place(x)) }
func (q *queue[T]) moved(x T)  { heap.Fix(q, *q.place(x)) }
