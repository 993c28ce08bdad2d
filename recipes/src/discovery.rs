//! Services by name: who offers them, and which instance to use.

use std::collections::BTreeSet;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use corral_client::{Acl, Client, Consistency, CreateMode, CreateOptions, ErrorCode, ambient, path as paths};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::contender::{create_in, stopped};
use crate::decide::discovery::{DownInstances, DownPolicy, Picker, ServiceInstance, ServiceType, Strategy};
use crate::decide::view::View;
use crate::error::Error;
use crate::group::{Group, Views};
use crate::presence::{Presence, Rejoin};

/// Services below a path, as Curator's x-discovery: `<path>/<service>/<id>`, with its JSON.
///
/// ```no_run
/// # use corral_client::Client;
/// # use corral_recipes::{Discovery, DownPolicy, Rejoin, ServiceInstance, Strategy};
/// # async fn example(client: Client) -> Result<(), corral_recipes::Error> {
/// let discovery = Discovery::new(&client, "/services");
/// let mine = discovery.register(ServiceInstance::new("web", "host-1", "10.0.0.7", 8080), Rejoin::Never).await?;
///
/// let provider = discovery.provider("web", Strategy::RoundRobin, DownPolicy::default()).await?;
/// if let Some(instance) = provider.instance()? {
///     println!("{}:{:?}", instance.address, instance.port);
///     // It did not answer:
///     provider.note_error(&instance);
/// }
/// mine.unregister().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Discovery {
    client: Client,
    path: String,
    acl: Vec<Acl>,
}

impl Discovery {
    /// The services below this path, which need not exist.
    pub fn new(client: &Client, path: impl Into<String>) -> Discovery {
        Discovery { client: client.clone(), path: path.into(), acl: Acl::open() }
    }

    /// The ACL of our registrations. Default: open.
    pub fn acl(mut self, acl: Vec<Acl>) -> Discovery {
        self.acl = acl;
        self
    }

    fn directory(&self, service: &str) -> String {
        paths::join(&self.path, service)
    }

    /// Registers an instance, and returns when it can be found. A dynamic one is there as long as the registration, and
    /// after the end of the session as `rejoin` says; its id may be in use by a former session, whose end is waited for. A
    /// static one replaces what is there.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn register(&self, instance: ServiceInstance, rejoin: Rejoin) -> Result<Registration, Error> {
        let directory = self.directory(&instance.name);
        let path = paths::join(&directory, &instance.id);
        let presence = match instance.service_type {
            ServiceType::Dynamic | ServiceType::DynamicSequential | ServiceType::Unknown => {
                let presence = Presence::new(&self.client, &path).acl(self.acl.clone()).rejoin(rejoin);
                let presence = presence.data(instance.encode()).start();
                presence.created().await?;
                Some(presence)
            }
            ServiceType::Static => {
                put(&self.client, &directory, &path, &instance, &self.acl).await?;
                None
            }
        };
        Ok(Registration { client: self.client.clone(), path, presence, acl: self.acl.clone(), instance })
    }

    /// The names of all services, ascending; also of those that have no instance at the moment.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn services(&self) -> Result<Vec<String>, Error> {
        match self.client.read(Consistency::Linearizable).get_children(&self.path).await {
            Err(error) if error.code() == Some(ErrorCode::NoNode) => Ok(Vec::new()),
            other => Ok(other?),
        }
    }

    /// The instances of a service now, in the order of their registration, disabled ones included.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn instances(&self, service: &str) -> Result<Vec<ServiceInstance>, Error> {
        Ok(instances(&Group::new(&self.client, self.directory(service)).view().await?))
    }

    /// What chooses among the instances of a service. It keeps itself informed, and asks nobody when asked.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn provider(
        &self,
        service: &str,
        strategy: Strategy,
        down: DownPolicy,
    ) -> Result<ServiceProvider, Error> {
        let mut views = Group::new(&self.client, self.directory(service)).views().await?;
        let known = Known { instances: instances(&views.next().await?), error: None };
        let (tell, known) = watch::channel(known);
        ambient::spawn(follow(views, tell));
        let choice = Choice { picker: Picker::new(strategy), down: DownInstances::new(down) };
        Ok(ServiceProvider { known, choice: Arc::new(Mutex::new(choice)), begun: ambient::now() })
    }
}

fn instances(view: &View) -> Vec<ServiceInstance> {
    let data = view.members.iter().filter_map(|member| member.data.as_deref());
    data.filter_map(ServiceInstance::parse).collect()
}

async fn put(
    client: &Client,
    directory: &str,
    path: &str,
    instance: &ServiceInstance,
    acl: &[Acl],
) -> Result<(), Error> {
    loop {
        let options = CreateOptions::new(CreateMode::Persistent).acl(acl.to_vec());
        match create_in(client, directory, path, instance.encode().into(), options).await {
            Err(error) if error.code() == Some(ErrorCode::NodeExists) => {}
            other => return Ok(other.map(drop)?),
        }
        match client.set(path, instance.encode(), None).await {
            Err(error) if error.code() == Some(ErrorCode::NoNode) => {}
            other => return Ok(other.map(drop)?),
        }
    }
}

/// One registered instance. Dropping it unregisters a dynamic one in the background.
#[derive(Debug)]
pub struct Registration {
    client: Client,
    path: String,
    acl: Vec<Acl>,
    instance: ServiceInstance,
    presence: Option<Presence>,
}

impl Registration {
    /// As it is registered.
    pub fn instance(&self) -> &ServiceInstance {
        &self.instance
    }

    /// Changes what is registered. Name, id and type stay.
    ///
    /// # Errors
    /// [`Error::BadArgument`]: another name, id or type. [`Error::Client`].
    pub async fn update(&mut self, instance: ServiceInstance) -> Result<(), Error> {
        let key = |of: &ServiceInstance| (of.name.clone(), of.id.clone(), of.service_type);
        if key(&instance) != key(&self.instance) {
            let reason = "an update changes neither name, id nor type: register it anew".to_owned();
            return Err(Error::BadArgument { path: self.path.clone(), reason });
        }
        match &mut self.presence {
            Some(presence) => drop(presence.set_data(instance.encode()).await?),
            None => {
                let directory = paths::parent(&self.path).unwrap_or("/");
                put(&self.client, directory, &self.path, &instance, &self.acl).await?;
            }
        }
        self.instance = instance;
        Ok(())
    }

    /// Takes it away, and returns when it is certainly gone.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn unregister(self) -> Result<(), Error> {
        match self.presence {
            Some(presence) => presence.close().await,
            None => match self.client.delete(&self.path, None).await {
                Err(error) if error.code() != Some(ErrorCode::NoNode) => Err(error.into()),
                _ => Ok(()),
            },
        }
    }
}

/// What a provider knows.
#[derive(Clone, Debug)]
struct Known {
    instances: Vec<ServiceInstance>,
    /// It will not learn any more.
    error: Option<Error>,
}

async fn follow(mut views: Views, known: watch::Sender<Known>) {
    loop {
        let next = tokio::select! {
            biased;
            () = known.closed() => return,
            next = views.next() => next,
        };
        match next {
            Ok(view) => drop(known.send_replace(Known { instances: instances(&view), error: None })),
            Err(error) => return known.send_modify(|known| known.error = Some(error)),
        }
    }
}

#[derive(Debug)]
struct Choice {
    picker: Picker,
    down: DownInstances,
}

/// Chooses among the instances of one service. Clones share what was chosen, and which had errors.
#[derive(Clone, Debug)]
pub struct ServiceProvider {
    known: watch::Receiver<Known>,
    choice: Arc<Mutex<Choice>>,
    begun: Instant,
}

impl ServiceProvider {
    fn now(&self) -> Duration {
        ambient::now().saturating_duration_since(self.begun)
    }

    /// An instance that is enabled and not taken for down; `None`: there is none. While the connection is broken, what was
    /// last known is used.
    ///
    /// # Errors
    /// [`Error::Client`]: the session is over, and what is known goes stale.
    pub fn instance(&self) -> Result<Option<ServiceInstance>, Error> {
        let known = self.known.borrow();
        if let Some(error) = &known.error {
            return Err(error.clone());
        }
        let mut choice = self.choice.lock();
        let now = self.now();
        let usable: BTreeSet<&str> = known
            .instances
            .iter()
            .filter(|instance| instance.enabled && !choice.down.is_down(&instance.id, now))
            .map(|instance| instance.id.as_str())
            .collect();
        let picked = choice.picker.pick(&usable, ambient::random());
        Ok(picked.and_then(|id| known.instances.iter().find(|instance| instance.id == id).cloned()))
    }

    /// As [`ServiceProvider::instance`], for one use, which lasts until what is given is dropped: what
    /// [`Strategy::LeastUsed`] counts.
    ///
    /// # Errors
    /// As [`ServiceProvider::instance`].
    pub fn begin_use(&self) -> Result<Option<InstanceUse>, Error> {
        let Some(instance) = self.instance()? else { return Ok(None) };
        self.choice.lock().picker.begin(&instance.id);
        Ok(Some(InstanceUse { instance, choice: self.choice.clone() }))
    }

    /// All instances, disabled and down ones included.
    ///
    /// # Errors
    /// As [`ServiceProvider::instance`].
    pub fn instances(&self) -> Result<Vec<ServiceInstance>, Error> {
        let known = self.known.borrow();
        known.error.clone().map_or_else(|| Ok(known.instances.clone()), Err)
    }

    /// This instance did not serve: after enough of these it is taken for down for a while.
    pub fn note_error(&self, instance: &ServiceInstance) {
        let known = self.known.borrow();
        let present: BTreeSet<&str> = known.instances.iter().map(|instance| instance.id.as_str()).collect();
        let mut choice = self.choice.lock();
        choice.down.retain(&present);
        choice.down.note_error(&instance.id, self.now());
    }

    /// Waits until the instances change. Cancel safe.
    ///
    /// # Errors
    /// As [`ServiceProvider::instance`].
    pub async fn changed(&mut self) -> Result<(), Error> {
        self.known.changed().await.map_err(|_| stopped())?;
        self.known.borrow_and_update().error.clone().map_or(Ok(()), Err)
    }
}

/// An instance that is in use. Dropped, it is not any more.
#[derive(Debug)]
pub struct InstanceUse {
    instance: ServiceInstance,
    choice: Arc<Mutex<Choice>>,
}

impl Deref for InstanceUse {
    type Target = ServiceInstance;

    fn deref(&self) -> &ServiceInstance {
        &self.instance
    }
}

impl Drop for InstanceUse {
    fn drop(&mut self) {
        self.choice.lock().picker.end(&self.instance.id);
    }
}
