package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// patience is how long one call may take before it counts as failed.
const patience = 20 * time.Second

// queued bounds how many calls of an open loop may be late at once.
const queued = 4096

// load is what to do: one line of standard input.
type load struct {
	Target   string  `json:"target"`
	Kind     string  `json:"kind"`
	Bytes    int     `json:"bytes"`
	InFlight int     `json:"in_flight"`
	Seconds  float64 `json:"seconds"`
	// Rate makes it an open loop: so many calls a second are due whatever became
	// of those before, and each latency counts from when its call was due.
	Rate float64 `json:"rate"`
}

// result is what came of it: one line of standard output. Times in microseconds.
type result struct {
	Calls    int     `json:"calls"`
	Errors   int     `json:"errors"`
	Error    string  `json:"error"`
	ElapsedS float64 `json:"elapsed_s"`
	P50      float64 `json:"p50_us"`
	P90      float64 `json:"p90_us"`
	P99      float64 `json:"p99_us"`
	Max      float64 `json:"max_us"`
}

func drive(in io.Reader, out io.Writer) error {
	conns := map[string]*grpc.ClientConn{}
	lines := bufio.NewScanner(in)
	answers := json.NewEncoder(out)
	for lines.Scan() {
		var wanted load
		if err := json.Unmarshal(lines.Bytes(), &wanted); err != nil {
			return fmt.Errorf("expected a load as JSON: %w", err)
		}
		found, err := made(wanted, conns)
		if err != nil {
			return err
		}
		if err := answers.Encode(found); err != nil {
			return err
		}
	}
	return lines.Err()
}

func made(wanted load, conns map[string]*grpc.ClientConn) (result, error) {
	one, known := kinds[wanted.Kind]
	if !known || wanted.InFlight < 1 || wanted.Seconds <= 0 {
		return result{}, fmt.Errorf("a load that cannot be made: %+v", wanted)
	}
	conn, err := connection(wanted.Target, conns)
	if err != nil {
		return result{}, err
	}
	crew := &crew{call: one, conn: conn, request: make([]byte, wanted.Bytes)}
	began := time.Now()
	if wanted.Rate > 0 {
		crew.open(wanted, began)
	} else {
		crew.closed(wanted, began)
	}
	return crew.result(time.Since(began)), nil
}

func connection(
	target string, conns map[string]*grpc.ClientConn,
) (*grpc.ClientConn, error) {
	if conn, ok := conns[target]; ok {
		return conn, nil
	}
	conn, err := grpc.NewClient(
		"passthrough:///"+target,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(raw{})),
		grpc.WithDisableServiceConfig(),
	)
	if err == nil {
		conns[target] = conn
	}
	return conn, err
}

// crew makes calls side by side and keeps what each took.
type crew struct {
	call    call
	conn    *grpc.ClientConn
	request []byte
	mutex   sync.Mutex
	took    []time.Duration
	errors  int
	first   string
}

// closed keeps a number of calls in flight: each worker makes one after the other.
func (c *crew) closed(wanted load, began time.Time) {
	end := began.Add(seconds(wanted.Seconds))
	var workers sync.WaitGroup
	for range wanted.InFlight {
		workers.Go(func() {
			var took []time.Duration
			for now := time.Now(); now.Before(end); now = time.Now() {
				if c.one() {
					took = append(took, time.Since(now))
				}
			}
			c.keep(took)
		})
	}
	workers.Wait()
}

// open makes calls when they are due; the workers only bound how many are late.
func (c *crew) open(wanted load, began time.Time) {
	due := make(chan time.Time, queued)
	var workers sync.WaitGroup
	for range wanted.InFlight {
		workers.Go(func() {
			var took []time.Duration
			for when := range due {
				if c.one() {
					took = append(took, time.Since(when))
				}
			}
			c.keep(took)
		})
	}
	for number := range int(wanted.Rate * wanted.Seconds) {
		when := began.Add(seconds(float64(number) / wanted.Rate))
		time.Sleep(time.Until(when))
		due <- when
	}
	close(due)
	workers.Wait()
}

func (c *crew) one() bool {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err := c.call(ctx, c.conn, &c.request)
	if err != nil {
		c.mutex.Lock()
		defer c.mutex.Unlock()
		c.errors++
		if c.first == "" {
			c.first = err.Error()
		}
	}
	return err == nil
}

func (c *crew) keep(took []time.Duration) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.took = append(c.took, took...)
}

func (c *crew) result(elapsed time.Duration) result {
	slices.Sort(c.took)
	return result{
		Calls:    len(c.took),
		Errors:   c.errors,
		Error:    c.first,
		ElapsedS: elapsed.Seconds(),
		P50:      c.percentile(0.5),
		P90:      c.percentile(0.9),
		P99:      c.percentile(0.99),
		Max:      c.percentile(1),
	}
}

// percentile returns the latency at or below which that share of the calls lies.
func (c *crew) percentile(share float64) float64 {
	if len(c.took) == 0 {
		return 0
	}
	at := int(share*float64(len(c.took))+0.999999) - 1
	return float64(c.took[min(max(at, 0), len(c.took)-1)].Nanoseconds()) / 1000
}

func seconds(s float64) time.Duration {
	return time.Duration(s * float64(time.Second))
}
