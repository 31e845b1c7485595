// Five lanterns that rise and sink over still water; loops without a seam.
//
//     renderonline submit examples/povray/lanterns.pov --engine povray --frames 1-24
//
// The clock goes from 0 (first frame of the task) to 1 (last frame).
#version 3.7;
global_settings { assumed_gamma 1.0 max_trace_level 6 }

#declare Turn = 2*pi*clock;

camera {
  location <0.4*sin(Turn), 2.0, -8.2>
  look_at <0, 0.55, 0>
  right x*image_width/image_height
  angle 48
}

background { rgb <0.010, 0.014, 0.040> }
sky_sphere {
  pigment {
    gradient y
    color_map {
      [0.00 rgb <0.075, 0.022, 0.045>]
      [0.10 rgb <0.026, 0.012, 0.042>]
      [0.40 rgb <0.006, 0.009, 0.030>]
    }
  }
}

plane {
  y, 0
  pigment { rgb <0.006, 0.012, 0.025> }
  normal { bumps 0.025 scale <0.9, 1, 0.30> translate <0, 0, 0.2*sin(Turn)> }
  finish { diffuse 0.3 reflection { 0.55, 1.0 } }
}

#macro Lantern(Place, Phase, Colour)
  #local Height = 1.15 + 0.38*sin(Turn + Phase);
  light_source {
    Place + <0, Height, 0>
    rgb Colour*0.55
    fade_distance 1.4
    fade_power 2
    looks_like {
      union {
        superellipsoid { <0.75, 0.35> scale <0.34, 0.34, 0.46> rotate 90*x
          pigment {
            gradient y
            color_map { [0 rgb Colour*1.25] [0.55 rgb Colour*0.55] [1 rgb Colour*0.16] }
            translate -0.5*y
            scale 0.95
          }
          finish { emission 0.9 diffuse 0 }
        }
        torus { 0.24, 0.022 translate 0.47*y pigment { rgb <0.35, 0.20, 0.08> } finish { emission 0.3 } }
        torus { 0.24, 0.022 translate -0.47*y pigment { rgb <0.35, 0.20, 0.08> } finish { emission 0.3 } }
      }
    }
  }
#end

Lantern(<-2.9, 0,  0.9>, 0.0,        <1.00, 0.24, 0.10>)
Lantern(<-1.4, 0, -0.3>, 0.4*pi,     <1.00, 0.46, 0.12>)
Lantern(< 0.1, 0,  0.8>, 0.8*pi,     <1.00, 0.70, 0.26>)
Lantern(< 1.5, 0, -0.2>, 1.2*pi,     <0.95, 0.30, 0.42>)
Lantern(< 3.0, 0,  1.0>, 1.6*pi,     <0.55, 0.28, 0.85>)

light_source { <-6, 9, -7> rgb <0.16, 0.19, 0.30> shadowless }
