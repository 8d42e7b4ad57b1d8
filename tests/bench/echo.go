package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/qrbd/qrbd/protocol/session"
)

const (
	echoBytes  = 4096 // of a question, one at a time
	echoAnswer = 16   // bytes; an acknowledgement is about as long
	echoWarm   = 500  // questions that are not counted
	echoAsked  = 5000 // that are

	// echoSlack is what a replicated write may take more than nbdkit's hop and a bare echo together.
	echoSlack = 1.3
)

// echoFigures is what a transport does by itself between two processes: 4 KiB there, a few bytes back.
type echoFigures struct {
	Transport string    `json:"transport"`
	P50us     []float64 `json:"p50_us"` // one for each round
}

// measureEcho runs the echo as often as there are rounds.
func measureEcho(ctx context.Context, s site, rounds int) (*echoFigures, error) {
	f := &echoFigures{Transport: s.transport}
	for round := range rounds {
		out, err := runBare(ctx, s.path(strconv.Itoa(round)), s.transport, echoAsked, [2]string{echoItem, echoItem})
		if err != nil {
			return nil, err
		}
		us, err := strconv.ParseFloat(strings.TrimSpace(out), 64)
		if err != nil {
			return nil, fmt.Errorf("echo: %q: %w", out, err)
		}
		f.P50us = append(f.P50us, us)
	}
	return f, nil
}

// first returns the stream between the ends.
func (b *bareEnd) first(ctx context.Context) (*session.Stream, error) {
	select {
	case s := <-b.stream:
		return s, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("no stream: %w", ctx.Err())
	}
}

// answer answers every question, until it is ended.
func (b *bareEnd) answer(ctx context.Context) error {
	s, err := b.first(ctx)
	if err != nil {
		return err
	}
	defer s.Abort()
	question, reply := make([]byte, echoBytes), make([]byte, echoAnswer)
	for {
		if _, err := io.ReadFull(s, question); err != nil {
			return err
		}
		if _, err := s.Write(reply); err != nil {
			return err
		}
	}
}

// ask asks n questions, one at a time, and returns the median time of one in microseconds.
func (b *bareEnd) ask(ctx context.Context, n int) (float64, error) {
	s, err := b.first(ctx)
	if err != nil {
		return 0, err
	}
	defer s.Abort()
	question, reply := make([]byte, echoBytes), make([]byte, echoAnswer)
	var times []time.Duration
	for i := range echoWarm + n {
		begin := time.Now()
		if _, err := s.Write(question); err != nil {
			return 0, err
		}
		if _, err := io.ReadFull(s, reply); err != nil {
			return 0, err
		}
		if i >= echoWarm {
			times = append(times, time.Since(begin))
		}
	}
	slices.Sort(times)
	return float64(times[len(times)/2].Nanoseconds()) / 1000, nil
}
