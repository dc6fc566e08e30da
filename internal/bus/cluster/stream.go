package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/nats-io/nats.go/jetstream"
)

// Stream is the JetStream stream of the external cluster that keeps what managers
// push, for managers that were not there. It is a cache: it may lag, and lose what it
// has.
type Stream struct {
	Domain   string        // of JetStream there: over a leaf node it has no other address
	Replicas int           // 1 to 3
	Life     time.Duration // of what is kept
}

// The stream's name, and its bound in bytes; what is oldest makes room.
const (
	streamName  = "cohort"
	streamBytes = 1 << 30
)

// streamWait is how long an answer of the external cluster is waited for.
const streamWait = 5 * time.Second

// Recall gives the items that the stream kept since a time, oldest first. A stream
// that is not there is made, and one of that name is taken as it is.
func (h *Hub) Recall(ctx context.Context, s Stream, since time.Time, f func(bus.Cluster, bus.Item)) error {
	js, err := jetstream.NewWithDomain(h.nc, s.Domain, jetstream.WithDefaultTimeout(streamWait))
	if err != nil {
		return fmt.Errorf("using JetStream: %w", err)
	}
	stream, err := js.Stream(ctx, streamName)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		stream, err = js.CreateStream(ctx, jetstream.StreamConfig{
			Name: streamName, Subjects: []string{subjectPush + "*"}, Replicas: s.Replicas, MaxAge: s.Life, MaxBytes: streamBytes,
		})
	}
	if err != nil {
		return fmt.Errorf("finding the stream %s: %w", streamName, err)
	}
	from := jetstream.OrderedConsumerConfig{FilterSubjects: []string{subjectPush + "*"}}
	if !since.IsZero() {
		from.DeliverPolicy, from.OptStartTime = jetstream.DeliverByStartTimePolicy, &since
	}
	consumer, err := stream.OrderedConsumer(ctx, from)
	if err != nil {
		return fmt.Errorf("reading the stream: %w", err)
	}
	left := consumer.CachedInfo().NumPending
	messages, err := consumer.Messages()
	if err != nil {
		return fmt.Errorf("reading the stream: %w", err)
	}
	defer messages.Stop()
	for left > 0 {
		m, err := next(ctx, messages)
		if err != nil {
			return fmt.Errorf("reading the stream, of which %d batches are left: %w", left, err)
		}
		meta, err := m.Metadata()
		if err != nil {
			return fmt.Errorf("reading the stream: %w", err)
		}
		left = meta.NumPending
		batchOf(m.Subject(), m.Data(), f)
	}
	return nil
}

func next(ctx context.Context, messages jetstream.MessagesContext) (jetstream.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, streamWait)
	defer cancel()
	return messages.Next(jetstream.NextContext(ctx))
}
