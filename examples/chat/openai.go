package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// modelName is the model's name in OpenAI's API.
const modelName = "harbour"

// defaultDelay is the pause before each token for callers that cannot choose it, in milliseconds.
const defaultDelay = 20

// completionRequest is the part of OpenAI's chat completion request that this service reads. SDKs
// send more, so other members are ignored.
type completionRequest struct {
	Model     string    `json:"model"`
	Messages  []message `json:"messages"`
	Stream    bool      `json:"stream"`
	MaxTokens int       `json:"max_tokens"`
	MaxNew    int       `json:"max_completion_tokens"` // the newer name of max_tokens
	Seed      uint64    `json:"seed"`
}

// message is one message of a conversation. Its content is a text, or parts with texts.
type message struct {
	Role    string  `json:"role"`
	Content content `json:"content"`
}

type content string

// UnmarshalJSON reads a text, or joins the texts of parts.
func (c *content) UnmarshalJSON(b []byte) error {
	var text string
	if json.Unmarshal(b, &text) == nil {
		*c = content(text)
		return nil
	}
	var parts []struct{ Type, Text string }
	if err := json.Unmarshal(b, &parts); err != nil {
		return errors.New("content: want a text or parts")
	}
	for _, p := range parts {
		if p.Type != "text" {
			return fmt.Errorf("content: got a part of type %q, want text", p.Type)
		}
		*c += content(p.Text)
	}
	return nil
}

// completion is a response in OpenAI's form, whole or one chunk of a stream.
type completion struct {
	ID      string             `json:"id"`
	Object  string             `json:"object"`
	Created int64              `json:"created"`
	Model   string             `json:"model"`
	Choices []completionChoice `json:"choices"`
	Usage   *completionUsage   `json:"usage,omitempty"`
}

type completionChoice struct {
	Index        int                `json:"index"`
	Message      *completionMessage `json:"message,omitempty"`
	Delta        *completionMessage `json:"delta,omitempty"`
	FinishReason *string            `json:"finish_reason"`
}

type completionMessage struct {
	Role    string `json:"role,omitempty"`
	Content string `json:"content"`
}

type completionUsage struct {
	Prompt int `json:"prompt_tokens"`
	Output int `json:"completion_tokens"`
	Total  int `json:"total_tokens"`
}

// serveModels lists the one model.
func serveModels(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]any{"object": "list", "data": []map[string]any{{"id": modelName, "object": "model", "created": 0, "owned_by": "cohort"}}})
}

// serveCompletion continues the newest message of the user, as OpenAI's SDKs expect it.
func serveCompletion(w http.ResponseWriter, r *http.Request, m *model) {
	q, stream, status, err := readCompletion(w, r)
	if err != nil {
		writeJSON(w, status, map[string]any{"error": map[string]any{"message": err.Error(), "type": "invalid_request_error", "param": nil, "code": nil}})
		return
	}
	c := completion{ID: fmt.Sprintf("chatcmpl-%x", q.Seed), Created: time.Now().Unix(), Model: modelName}
	if stream {
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Accel-Buffering", "no") // nginx holds streams back otherwise
		c.Object = "chat.completion.chunk"
		// An error here means that the client has disconnected.
		_ = streamCompletion(r.Context(), w, m, q, c)
		return
	}
	var text strings.Builder
	sent, reason := 0, "length"
	for token := range m.generate(q.Prompt, q.Seed) {
		if sent == q.MaxTokens || r.Context().Err() != nil {
			break
		}
		text.WriteString(token)
		sent++
	}
	c.Object = "chat.completion"
	c.Choices = []completionChoice{{Message: &completionMessage{"assistant", text.String()}, FinishReason: &reason}}
	c.Usage = &completionUsage{Prompt: len(tokens(q.Prompt)), Output: sent}
	c.Usage.Total = c.Usage.Prompt + sent
	writeJSON(w, http.StatusOK, c)
}

// streamCompletion writes one event for each token, and the end that SDKs wait for.
func streamCompletion(ctx context.Context, w http.ResponseWriter, m *model, q question, c completion) error {
	chunk := func(delta completionMessage, finish *string) error {
		c.Choices = []completionChoice{{Delta: &delta, FinishReason: finish}}
		text, err := json.Marshal(c)
		if err != nil {
			return err
		}
		return dataEvent(w, text)
	}
	if err := chunk(completionMessage{Role: "assistant"}, nil); err != nil {
		return err
	}
	sent := 0
	for token := range m.generate(q.Prompt, q.Seed) {
		if sent == q.MaxTokens {
			break
		}
		if err := pause(ctx, time.Duration(q.DelayMS)*time.Millisecond); err != nil {
			return err
		}
		if err := chunk(completionMessage{Content: token}, nil); err != nil {
			return err
		}
		sent++
	}
	reason := "length"
	if err := chunk(completionMessage{}, &reason); err != nil {
		return err
	}
	return dataEvent(w, []byte("[DONE]"))
}

// readCompletion reads a bounded request, and returns it in the service's own form.
func readCompletion(w http.ResponseWriter, r *http.Request) (q question, stream bool, status int, err error) {
	var c completionRequest
	if status, err := readJSON(w, r, func(body *json.Decoder) error { return body.Decode(&c) }); err != nil {
		return q, false, status, err
	}
	if c.Model != modelName {
		return q, false, http.StatusNotFound, fmt.Errorf("model: got %q, want %q", c.Model, modelName)
	}
	q = question{MaxTokens: c.MaxTokens, Seed: c.Seed, DelayMS: defaultDelay}
	if c.MaxNew != 0 {
		q.MaxTokens = c.MaxNew
	}
	if q.MaxTokens == 0 {
		q.MaxTokens = defaultTokens
	}
	for _, m := range c.Messages {
		if m.Role == "user" {
			q.Prompt = string(m.Content)
		}
	}
	return q, c.Stream, http.StatusUnprocessableEntity, q.check()
}
