package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/nats-io/nats.go/jetstream"
)

// Stream describes the JetStream stream of the external cluster. The stream stores pushed items
// for managers that were not connected. It is a cache: it may lag and lose items.
type Stream struct {
	Domain   string        // JetStream domain of the cluster, which addresses it over a leaf node
	Replicas int           // 1 to 3
	MaxAge   time.Duration // maximum age of stored messages
}

// Name of the stream, and its maximum size in bytes; NATS removes the oldest messages first.
const (
	streamName  = "cohort"
	streamBytes = 1 << 30
)

// streamWait limits the wait for one response of the external cluster.
const streamWait = 5 * time.Second

// Recall calls f with the items that the stream stored since the time since, or with all if it
// is zero, oldest first. It creates the stream if it does not exist, and does not change an
// existing stream.
func (h *Hub) Recall(ctx context.Context, s Stream, since time.Time, f func(bus.Cluster, bus.Item)) error {
	js, err := jetstream.NewWithDomain(h.nc, s.Domain, jetstream.WithDefaultTimeout(streamWait))
	if err != nil {
		return fmt.Errorf("using JetStream: %w", err)
	}
	stream, err := js.Stream(ctx, streamName)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		stream, err = js.CreateStream(ctx, jetstream.StreamConfig{
			Name: streamName, Subjects: []string{subjectPush + "*"}, Replicas: s.Replicas, MaxAge: s.MaxAge, MaxBytes: streamBytes,
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
		m, err := nextMessage(ctx, messages)
		if err != nil {
			return fmt.Errorf("reading the stream, of which %d batches are left: %w", left, err)
		}
		meta, err := m.Metadata()
		if err != nil {
			return fmt.Errorf("reading the stream: %w", err)
		}
		left = meta.NumPending
		forEachItem(m.Subject(), m.Data(), f)
	}
	return nil
}

func nextMessage(ctx context.Context, messages jetstream.MessagesContext) (jetstream.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, streamWait)
	defer cancel()
	return messages.Next(jetstream.NextContext(ctx))
}
