"""JSON schemas of the fields that the recipes of launch/pods use, and of no others: a misspelt
field is an error.

Source: for JobSet, its API jobset.x-k8s.io/v1alpha2 (kubernetes-sigs/jobset at 08dfbdf,
jobset_types.go there, and the resource definition made from it); for what is in it, Kubernetes'
batch/v1 Job and core/v1 Pod; for SkyPilot, its YAML specification and sky/utils/schemas.py of
release 0.14.1.
"""

TEXT, NUMBER, FLAG = (
  {'type': 'string', 'minLength': 1},
  {'type': 'integer', 'minimum': 0},
  {'type': 'boolean'},
)
TEXTS = {'type': 'object', 'additionalProperties': TEXT}
NAME = {
  'type': 'string',
  'pattern': '^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$',
}  # RFC 1123; a letter first, for services
STATUS = {'type': 'integer', 'minimum': 1, 'maximum': 255}


def fields(required: str = '', **known):
  """An object with these fields, of which the named ones must be there."""
  return {
    'type': 'object',
    'additionalProperties': False,
    'required': required.split(),
    'properties': known,
  }


def items(schema, **more):
  """A list, not empty."""
  return {'type': 'array', 'minItems': 1, 'items': schema, **more}


CONTAINER = fields(
  'name image',
  name=NAME,
  image=TEXT,
  command=items(TEXT),
  args=items(TEXT),
  resources=fields(limits={'type': 'object', 'additionalProperties': NUMBER}),
  volumeMounts=items(fields('name mountPath', name=NAME, mountPath=TEXT)),
)
VOLUME = fields('name csi', name=NAME, csi=fields('driver', driver=TEXT, volumeAttributes=TEXTS))
POD = fields(
  'containers restartPolicy',
  containers=items(CONTAINER),
  volumes=items(VOLUME),
  nodeSelector=TEXTS,
  serviceAccountName=NAME,
  restartPolicy={'const': 'Never'},  # the only one that goes with a podFailurePolicy
  terminationGracePeriodSeconds=NUMBER,
)
EXIT_CODES = fields(
  'operator values',
  containerName=NAME,
  operator={'enum': ['In', 'NotIn']},
  values=items(STATUS, uniqueItems=True),
)
POD_FAILURE = {
  **fields(
    'action',
    action={'enum': ['FailJob', 'FailIndex', 'Ignore', 'Count']},
    onExitCodes=EXIT_CODES,
    onPodConditions=items(fields('type', type=TEXT, status=TEXT)),
  ),
  'oneOf': [{'required': ['onExitCodes']}, {'required': ['onPodConditions']}],
}
JOB = fields(
  'template',
  completionMode={'enum': ['Indexed', 'NonIndexed']},
  parallelism=NUMBER,
  completions=NUMBER,
  backoffLimit=NUMBER,
  podFailurePolicy=fields('rules', rules=items(POD_FAILURE)),
  template=fields('spec', metadata=fields(annotations=TEXTS), spec=POD),
)
JOBSET_FAILURE = fields(
  'name action',
  name={'type': 'string', 'pattern': '^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$'},
  action={'enum': ['FailJobSet', 'RestartJobSet', 'RestartJobSetAndIgnoreMaxRestarts']},
  onJobFailureReasons=items(
    {'enum': ['BackoffLimitExceeded', 'DeadlineExceeded', 'FailedIndexes', 'PodFailurePolicy']}
  ),
)
JOBSET = fields(
  'apiVersion kind metadata spec',
  apiVersion={'const': 'jobset.x-k8s.io/v1alpha2'},
  kind={'const': 'JobSet'},
  metadata=fields('name', name=NAME, annotations=TEXTS, labels=TEXTS),
  spec=fields(
    'replicatedJobs',
    failurePolicy=fields(maxRestarts=NUMBER, rules=items(JOBSET_FAILURE)),
    replicatedJobs=items(
      fields('name template', name=NAME, replicas=NUMBER, template=fields('spec', spec=JOB))
    ),
  ),
)

SKY = fields(
  'run',
  name=TEXT,
  num_nodes={'type': 'integer', 'minimum': 1},
  workdir=TEXT,
  setup=TEXT,
  run=TEXT,
  resources=fields(
    accelerators=TEXT,
    use_spot=FLAG,
    job_recovery=fields(
      strategy={'enum': ['FAILOVER', 'EAGER_NEXT_REGION']},
      max_restarts_on_errors=NUMBER,
      recover_on_exit_codes=items(STATUS, uniqueItems=True),
    ),
  ),
  file_mounts={
    'type': 'object',
    'additionalProperties': fields(
      'source mode', source=TEXT, mode={'enum': ['MOUNT', 'COPY', 'MOUNT_CACHED']}
    ),
  },
)

# Directives of slurm.sbatch, by what sbatch takes for them. Source: sbatch(1) of Slurm 22.05.
SBATCH = {
  'job-name': r'\S+',
  'nodes': r'\d+(-\d+)?',
  'ntasks-per-node': r'\d+',
  'gpus-per-node': r'([a-z]\w*:)?\d+',
  'time': r'(\d+-)?\d+(:\d\d){0,2}',
  'output': r'\S+',
  'open-mode': 'append|truncate',
  'requeue': None,
  'signal': r'([RB]+:)?[A-Z0-9]+(@\d+)?',
  'partition': r'\S+',
  'account': r'\S+',
}
