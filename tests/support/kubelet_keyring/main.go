// The logins that the kubelet tries for an image, found by its own code: first those of imagePullSecrets, then those of
// credential providers. Standard input: a Query; standard output: a list of logins. Only the tokens of the service
// account are not those of an API server, but the one of the query.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"time"

	authentication "k8s.io/api/authentication/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kubernetes/pkg/credentialprovider/plugin"
	"k8s.io/kubernetes/pkg/credentialprovider/secrets"
)

// Query is a pod's pull.
type Query struct {
	Image      string
	Secrets    []string // the value of the key .dockerconfigjson of each secret
	Config     string   // the file of --image-credential-provider-config; none if empty
	Programs   string   // the directory of --image-credential-provider-bin-dir
	Namespace  string
	Account    string
	Token      string
	TokensFile string // where the audience of each request for a token is written, a line each
}

// Login is what the kubelet gives to the container runtime.
type Login struct {
	Username, Password string
}

func main() {
	logins, err := find()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	_ = json.NewEncoder(os.Stdout).Encode(logins)
}

func find() ([]Login, error) {
	var query Query
	if err := json.NewDecoder(os.Stdin).Decode(&query); err != nil {
		return nil, err
	}
	if query.Config != "" {
		if err := plugin.RegisterCredentialProviderPlugins(query.Config, query.Programs, query.issue, query.account); err != nil {
			return nil, err
		}
	}
	pullSecrets := make([]core.Secret, 0, len(query.Secrets))
	for number, text := range query.Secrets {
		pullSecrets = append(pullSecrets, core.Secret{
			ObjectMeta: meta.ObjectMeta{Namespace: query.Namespace, Name: fmt.Sprint("secret-", number)},
			Type:       core.SecretTypeDockerConfigJson,
			Data:       map[string][]byte{core.DockerConfigJsonKey: []byte(text)},
		})
	}
	providers := plugin.NewExternalCredentialProviderDockerKeyring(query.Namespace, "pod", "pod-uid", query.Account)
	keyring, err := secrets.MakeDockerKeyring(pullSecrets, providers)
	if err != nil {
		return nil, err
	}
	found, _ := keyring.Lookup(query.Image)
	logins := []Login{}
	for _, each := range found {
		logins = append(logins, Login{each.Username, each.Password})
	}
	return logins, nil
}

func (query Query) issue(namespace, name string, request *authentication.TokenRequest) (*authentication.TokenRequest, error) {
	file, err := os.OpenFile(query.TokensFile, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if _, err := fmt.Fprintln(file, namespace, name, request.Spec.Audiences); err != nil {
		return nil, err
	}
	request.Status.Token = query.Token
	request.Status.ExpirationTimestamp = meta.NewTime(time.Now().Add(time.Hour))
	return request, nil
}

func (query Query) account(namespace, name string) (*core.ServiceAccount, error) {
	return &core.ServiceAccount{ObjectMeta: meta.ObjectMeta{Namespace: namespace, Name: name, UID: "account-uid"}}, nil
}
