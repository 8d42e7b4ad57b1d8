package arbiter

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Settings are a volume's [volume.failover.etcd].
type Settings struct {
	Endpoints []string // http://host:port or https://host:port
	Prefix    string   // of the keys
	CA        string   // path of certificates in PEM; "": the host's
	Cert, Key string   // paths of this node's certificate; "": none
	Username  string   // "": none
	Password  string   // path of a file
}

// Etcd is a connection to an etcd cluster. Safe for concurrent use.
type Etcd struct {
	client *clientv3.Client
	key    string
	from   string
}

// dialTimeout bounds the first contact with an endpoint.
const dialTimeout = 5 * time.Second

// OpenEtcd prepares a connection for a volume; it is made when it is used.
func OpenEtcd(s *Settings, volume string) (*Etcd, error) {
	c := clientv3.Config{Endpoints: s.Endpoints, DialTimeout: dialTimeout, DialKeepAliveTime: time.Second, DialKeepAliveTimeout: 2 * time.Second, Logger: zap.NewNop()}
	if strings.HasPrefix(s.Endpoints[0], "https://") {
		t, err := s.tls()
		if err != nil {
			return nil, err
		}
		c.TLS = t
	}
	if s.Username != "" {
		b, err := os.ReadFile(s.Password)
		if err != nil {
			return nil, fmt.Errorf("password of etcd: %w", err)
		}
		c.Username, c.Password = s.Username, strings.TrimSpace(string(b))
	}
	client, err := clientv3.New(c)
	if err != nil {
		return nil, fmt.Errorf("etcd at %s: %w", strings.Join(s.Endpoints, ", "), err)
	}
	return &Etcd{client: client, key: strings.TrimSuffix(s.Prefix, "/") + "/" + volume + "/vote", from: strings.Join(s.Endpoints, ", ")}, nil
}

func (s *Settings) tls() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.CA != "" {
		pem, err := os.ReadFile(s.CA)
		if err != nil {
			return nil, fmt.Errorf("certificates of etcd: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("certificates of etcd: %s holds none", s.CA)
		}
	}
	if s.Cert != "" {
		pair, err := tls.LoadX509KeyPair(s.Cert, s.Key)
		if err != nil {
			return nil, fmt.Errorf("this node's certificate for etcd: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// Close ends the connection.
func (e *Etcd) Close() error { return e.client.Close() }

func (e *Etcd) fails(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("etcd at %s does not answer in time", e.from)
	}
	return fmt.Errorf("etcd at %s: %w", e.from, err)
}

// Load implements Store: a linearizable read.
func (e *Etcd) Load(ctx context.Context) (Record, int64, error) {
	var r Record
	got, err := e.client.Get(ctx, e.key)
	if err != nil {
		return r, 0, e.fails(err)
	}
	if len(got.Kvs) == 0 {
		return r, 0, nil
	}
	if err := json.Unmarshal(got.Kvs[0].Value, &r); err != nil {
		return r, 0, fmt.Errorf("etcd at %s: %w: the key %s holds something else: %w", e.from, ErrForeign, e.key, err)
	}
	return r, got.Kvs[0].ModRevision, nil
}

// Swap implements Store: one transaction.
func (e *Etcd) Swap(ctx context.Context, revision int64, r Record) (int64, bool, error) {
	value, err := json.Marshal(r)
	if err != nil {
		return 0, false, fmt.Errorf("vote: %w", err)
	}
	done, err := e.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(e.key), "=", revision)).Then(clientv3.OpPut(e.key, string(value))).Commit()
	if err != nil {
		return 0, false, e.fails(err)
	}
	return done.Header.Revision, done.Succeeded, nil
}
