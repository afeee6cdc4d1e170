// Post-processing: a glow gathered with `cost` taps, tone mapping, a vignette.
// GPU time grows linearly with `cost`.

struct Pass {
    size: vec2<u32>,
    cost: u32,
    frame: u32,
}

@group(0) @binding(0) var<uniform> settings: Pass;
@group(0) @binding(1) var<storage, read> lit: array<vec4<f32>>;
@group(0) @binding(2) var shown: texture_storage_2d<rgba8unorm, write>;

@compute @workgroup_size(8, 8)
fn main(@builtin(global_invocation_id) gid: vec3<u32>) {
    if any(gid.xy >= settings.size) { return; }
    let size = vec2<f32>(settings.size);
    let middle = vec2<f32>(gid.xy) + 0.5;
    let n = max(settings.cost, 1u);
    var glow = vec3<f32>(0.0);
    for (var i = 0u; i < n; i++) {
        let angle = 2.3999632 * f32(i);
        let r = 0.09 * size.y * (f32(i) + 0.5) / f32(n);
        let at = clamp(middle + r * vec2(cos(angle), sin(angle)), vec2(0.0), size - 1.0);
        let tap = lit[u32(at.y) * settings.size.x + u32(at.x)].rgb;
        glow += max(tap - 0.7, vec3(0.0));
    }
    var colour = lit[gid.y * settings.size.x + gid.x].rgb + 0.9 * glow / f32(n);
    colour = colour * (2.51 * colour + 0.03) / (colour * (2.43 * colour + 0.59) + 0.14);
    let corner = (middle - 0.5 * size) / size.y;
    colour *= 1.0 - 0.35 * dot(corner, corner);
    colour = pow(clamp(colour, vec3(0.0), vec3(1.0)), vec3(1.0 / 2.2));
    textureStore(shown, gid.xy, vec4(colour, 1.0));
}
